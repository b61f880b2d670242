//! Putting map nodes that were built again into a pack of their own.
//!
//! In: nodes, proven by their ids. Out: a sealed pack, durable and indexed. Only for a store that
//! no session uses: it waits for the disk.

use gantry_common::session::store_port::TaskKey;

use super::Store;
use super::durable::NodeWriter;
use crate::store::error::StoreError;
use crate::store::map_tree::NodeStore;
use crate::store::pack::PackSet;
use crate::store::repair::BuiltNode;
use crate::store::storage::Storage;

impl<S: Storage> Store<S> {
    /// Writes nodes where they are lost.
    ///
    /// # Errors
    /// Of the pack or the index. Nodes that were written before are found at the next opening.
    pub(in crate::store) fn write_nodes(&mut self, nodes: &[BuiltNode]) -> Result<(), StoreError> {
        let mut packs = PackSet::new();
        for node in nodes {
            let key = TaskKey { session: node.session, task: node.task };
            let collection = self.shared_collection();
            let numbers = &mut self.numbers;
            NodeWriter {
                repo: &self.repo,
                collection,
                packs: &mut packs,
                numbers,
                key,
                base_is: true,
            }
            .put(node.level, node.index, &node.children)?;
        }
        packs.close();
        for pack in &mut packs.packs {
            let bytes = pack.seal_waiting()?;
            self.repo.add_pack(pack.number, &pack.slots, bytes, &|_| true, true)?;
        }
        Ok(())
    }
}
