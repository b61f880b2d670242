//! Files of datastores by the datastore browser's addresses: their paths, and a file put there.
//!
//! In: a datastore path (`[datastore] folder/file`), text. Out: path and query of `/folder`, as vCenter
//! and ESXi serve it; a file. Source: "vSphere Web Services SDK Programming Guide", access to datastore
//! files by HTTP.

use std::time::Duration;

use gantry_http::{Request, header};

use super::error::{ErrorKind, VimError};
use super::{Element, MoRef, VCenter};

/// How long a small file may take.
const PUT_WITHIN: Duration = Duration::from_secs(120);
/// Bytes of an answer that says what is wrong.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// `[ds] vm/vm.vmdk` → `[ds] vm/vm-flat.vmdk`.
pub fn flat_name(file: &str) -> String {
    format!("{}-flat.vmdk", file.strip_suffix(".vmdk").unwrap_or(file))
}

/// Path and query of a datastore file in the datastore browser's address space.
pub fn folder_path(file: &str, datacenter: Option<&str>) -> Option<String> {
    let (datastore, path) = file.strip_prefix('[')?.split_once("] ")?;
    let mut text = format!("/folder/{}?", encode(path, true));
    if let Some(datacenter) = datacenter {
        text.push_str(&format!("dcPath={}&", encode(datacenter, false)));
    }
    text.push_str(&format!("dsName={}", encode(datastore, false)));
    Some(text)
}

/// Percent-encodes all but RFC 3986's unreserved characters (and slashes, where they separate).
fn encode(text: &str, keep_slashes: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if plain || (keep_slashes && byte == b'/') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The inventory path of the datacenter above an object: `/folder` wants it; nothing on a host.
pub async fn datacenter_of(vcenter: &VCenter, object: &MoRef) -> Option<String> {
    let mut at = object.clone();
    let mut names: Vec<String> = Vec::new();
    // Inventories are a few levels deep; a parent chain that does not end is not followed.
    for _ in 0..64 {
        let content = vcenter.properties_of(&at, "inventory", &["name", "parent"]).await.ok()?;
        if at.kind.as_ref() == "Datacenter" || !names.is_empty() {
            names.insert(0, content.text("name")?.to_owned());
        }
        match content.get("parent").and_then(Element::as_moref) {
            Some(parent) => at = parent,
            None => break,
        }
    }
    // The root folder has no place in the path.
    let below_root = names.get(1..)?;
    (!below_root.is_empty()).then(|| below_root.join("/"))
}

impl VCenter {
    /// Puts a small file into a datastore, in the place of one of that name; its folder must be there.
    /// `datacenter`: as [`datacenter_of`] gives it.
    ///
    /// # Errors
    /// As any call; a status that is no success is told with the server's words.
    pub async fn put_datastore_file(
        &self,
        file: &str,
        datacenter: Option<&str>,
        content: &str,
    ) -> Result<(), VimError> {
        let method = "PUT /folder";
        let error = |kind: ErrorKind| VimError {
            endpoint: self.http().endpoint().to_string(),
            method,
            object: file.to_owned(),
            kind: Box::new(kind),
        };
        let path = folder_path(file, datacenter)
            .ok_or_else(|| self.unexpected(method, file, "this is no path of a datastore"))?;
        // A call that needs a session: a lost one is replaced by it.
        self.current_time().await?;
        let cookie = self.session_cookie().await?;
        let request = Request::put(path, content.to_owned())
            .header(header::COOKIE, cookie.reveal())
            .idempotent(true)
            .timeout(PUT_WITHIN);
        let answer = self.http().send(&request).await.map_err(|e| error(ErrorKind::Http(e)))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let said = answer.body_bounded(ANSWER_BYTES_MAX).await.unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        Err(error(ErrorKind::Status(status, format!(": {}", super::soap::quoted(&said)))))
    }
}

#[cfg(test)]
mod tests {
    use super::{flat_name, folder_path};

    #[test]
    fn datastore_paths_become_addresses() {
        assert_eq!(flat_name("[ds] a/b.vmdk"), "[ds] a/b-flat.vmdk");
        assert_eq!(
            folder_path("[ds 1] a b/ü&c.vmdk", Some("DC/x")).as_deref(),
            Some("/folder/a%20b/%C3%BC%26c.vmdk?dcPath=DC%2Fx&dsName=ds%201")
        );
        assert_eq!(folder_path("[ds] a.vmdk", None).as_deref(), Some("/folder/a.vmdk?dsName=ds"));
        assert_eq!(folder_path("a.vmdk", None), None);
    }
}
