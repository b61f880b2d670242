//! `gantry restore`: disks of a point to files of a proxy, or to a new machine.
//!
//! In: names as people use them. Out: a session, followed to its end if asked. Must not: decide what only
//! gantryd knows (which proxy reaches a datastore, whether a name is taken).

use clap::{Args, Subcommand};
use gantry_common::failure::Failure;
use serde_json::{Map, Value, json};

use super::other::only_repository;
use super::records::{Kind, find};
use super::sessions::{SESSIONS, follow};
use super::{Asked, show, usage};
use crate::client::Client;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum RestoreCommand {
    /// Raw image files in a folder of a proxy, one for each disk.
    Files {
        #[command(flatten)]
        what: What,
        /// The proxy.
        #[arg(long)]
        proxy: String,
        /// The folder there, an absolute path.
        #[arg(long)]
        folder: String,
    },
    /// A new virtual machine, made from the configuration that the point keeps. If its disks cannot be
    /// written whole, nothing of it stays. It is left off unless '--power-on' is given.
    Vm {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        place: Box<Place>,
    },
}

/// What is restored.
#[derive(Debug, Args)]
pub(in crate::cli) struct What {
    /// The name under which the machine's points are kept (see 'gantry point list').
    name: String,
    /// The point, 32 hexadecimal digits; without it the newest.
    #[arg(long)]
    point: Option<String>,
    /// Only the disk of this label; may be given several times.
    #[arg(long, value_name = "LABEL")]
    disk: Vec<String>,
    /// Its repository; not needed where there is one.
    #[arg(long)]
    repository: Option<String>,
    /// Show its progress until it ends; the exit code is its result.
    #[arg(long, short)]
    watch: bool,
    #[command(flatten)]
    asked: Asked,
}

/// Where the new machine is made.
#[derive(Debug, Args)]
pub(in crate::cli) struct Place {
    /// The vCenter.
    #[arg(long)]
    vcenter: String,
    /// Name of the new machine.
    #[arg(long = "as", value_name = "NAME")]
    new_name: String,
    /// Datastore for its files.
    #[arg(long)]
    datastore: String,
    /// Path of its folder, such as /Datacenter/vm/Restored; usually the datacenter's own.
    #[arg(long)]
    folder: Option<String>,
    /// Host; usually one that reaches the datastore.
    #[arg(long)]
    host: Option<String>,
    /// Cluster.
    #[arg(long)]
    cluster: Option<String>,
    /// Resource pool: its name, or its path below the cluster or host.
    #[arg(long)]
    pool: Option<String>,
    /// A network of the old machine and the one to connect to instead; may be given several times.
    /// Adapters whose network is not there are left disconnected.
    #[arg(long = "network", value_name = "OLD=NEW", value_parser = network)]
    networks: Vec<(String, String)>,
    /// The proxy that writes the disks; usually one that reaches the datastore.
    #[arg(long)]
    proxy: Option<String>,
    /// Make it the same machine, with its UUIDs and MAC addresses; the old one must be out of the
    /// inventory.
    #[arg(long)]
    keep_identity: bool,
    /// Switch it on when it is whole.
    #[arg(long)]
    power_on: bool,
}

fn network(text: &str) -> Result<(String, String), String> {
    let parted = text.split_once('=').filter(|(old, new)| !old.is_empty() && !new.is_empty());
    let (old, new) = parted.ok_or("give OLD=NEW, names of two networks")?;
    Ok((old.to_owned(), new.to_owned()))
}

/// Begins, and follows if asked.
pub(in crate::cli) async fn run(command: RestoreCommand) -> Result<(), Failure> {
    let (what, place) = match command {
        RestoreCommand::Files { what, proxy, folder } => (what, Err((proxy, folder))),
        RestoreCommand::Vm { what, place } => (what, Ok(place)),
    };
    let client = what.asked.client()?;
    let repository = match &what.repository {
        Some(name) => find(&client, Kind::Repository, name).await?,
        None => only_repository(&client).await?,
    };
    let target = match place {
        Err((proxy, folder)) => {
            let proxy = find(&client, Kind::Proxy, &proxy).await?;
            json!({ "kind": "files", "proxy": proxy["id"], "folder": folder })
        }
        Ok(place) => new_machine(&client, *place).await?,
    };
    let wanted = json!({
        "repository": repository["id"], "name": what.name, "point": what.point, "disks": what.disk,
        "target": target,
    });
    let begun = client.post("restores", &wanted).await?;
    if what.watch {
        return follow(&client, &what.asked, begun["id"].as_str().unwrap_or_default()).await;
    }
    show(&what.asked, &begun, SESSIONS)
}

async fn new_machine(client: &Client, place: Place) -> Result<Value, Failure> {
    let vcenter = find(client, Kind::Vcenter, &place.vcenter).await?;
    let proxy = match &place.proxy {
        Some(name) => find(client, Kind::Proxy, name).await?["id"].clone(),
        None => Value::Null,
    };
    let mut networks = Map::new();
    for (old, new) in place.networks {
        if networks.insert(old.clone(), Value::String(new)).is_some() {
            return Err(usage(format!("--network: '{old}' is given twice")));
        }
    }
    Ok(json!({
        "kind": "new_vm", "vcenter": vcenter["id"], "name": place.new_name,
        "datastore": place.datastore, "folder": place.folder, "host": place.host,
        "cluster": place.cluster, "pool": place.pool, "proxy": proxy, "networks": networks,
        "keep_identity": place.keep_identity, "power_on": place.power_on,
    }))
}

#[cfg(test)]
mod tests {
    use super::network;

    #[test]
    fn networks_are_pairs_of_names() {
        assert_eq!(network("VM Network=Test"), Ok(("VM Network".into(), "Test".into())));
        assert_eq!(network("a=b=c").map(|(_, new)| new), Ok("b=c".into()));
        for bad in ["", "a", "=b", "a="] {
            assert!(network(bad).is_err(), "{bad}");
        }
    }
}
