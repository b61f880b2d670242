//! `/nfc/LEASE/DISK`: a disk as streamOptimized VMDK. The lease's id is the ticket.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};

use super::folder::check_accessible;
use super::{Body, stream, text};
use crate::limits;
use crate::sim::Sim;

/// Answers a request for a lease's disk.
pub async fn serve(sim: Arc<Sim>, path: &str) -> Response<Body> {
    let missing = || text(StatusCode::NOT_FOUND, "text/plain", "no such lease or disk\n".into());
    let mut parts = path.trim_start_matches("/nfc/").splitn(2, '/');
    let (Some(id), Some(name)) = (parts.next(), parts.next()) else { return missing() };
    let found = {
        let state = sim.lock();
        let lease = state.leases.get(id).filter(|lease| lease.open);
        lease.and_then(|lease| {
            let at = lease.disks.iter().position(|disk| disk.name == name)?;
            Some((lease.snapshot, at, lease.disks[at].disk))
        })
    };
    let Some((snapshot, at, disk)) = found else { return missing() };
    let storage = sim.storage.clone();
    let opened = tokio::task::spawn_blocking(move || storage.export_stream(disk, snapshot)).await;
    let mut export = match opened {
        Ok(Ok(export)) => export,
        Ok(Err(error)) => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return text(status, "text/plain", format!("{error}\n"));
        }
        Err(_) => return missing(),
    };
    let id: Arc<str> = id.into();
    let chain = sim.storage.disk(disk).map(|info| info.chain).unwrap_or_default();
    let stores: BTreeSet<_> = chain.iter().map(|link| link.file.datastore().to_owned()).collect();
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    let mut size = 0;
    let body = stream::body(move || {
        if !sim.lock().leases.get(&id).is_some_and(|lease| lease.open) {
            return Err(io::Error::other("the lease has ended"));
        }
        for store in &stores {
            check_accessible(&sim, store).map_err(io::Error::other)?;
        }
        let mut piece = vec![0; limits::READ_BYTES];
        let count = export.read(&mut piece)?;
        if count > 0 {
            piece.truncate(count);
            digest.update(&piece);
            size += count as u64;
            return Ok(Some(Bytes::from(piece)));
        }
        let sum = digest.clone().finish();
        let sum = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if let Some(disk) = sim.lock().leases.get_mut(&id).and_then(|lease| lease.disks.get_mut(at))
        {
            disk.sent = Some((size, sum));
        }
        Ok(None)
    });
    let mut response = Response::new(body);
    let kind = HeaderValue::from_static("application/x-vnd.vmware-streamVmdk");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
