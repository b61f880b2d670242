//! What the index remembers of the last collection, for `repo stat`.
//!
//! In: figures. Out: the same, until the index is built anew. Losing them costs a line of a report.

use redb::ReadableDatabase;

use super::{Index, META, guarded};
use crate::store::error::StoreError;
use crate::store::fields::Fields;

const META_COLLECTED: &str = "collected";

/// The last collection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// When it ended, milliseconds since 1970.
    pub at_ms: u64,
    /// Bytes of dead records that it left where they are.
    pub bytes_dead_left: u64,
}

impl Index {
    /// Remembers a collection that has ended.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn set_collected(&self, collected: Collected) -> Result<(), StoreError> {
        let mut row = collected.at_ms.to_le_bytes().to_vec();
        row.extend(collected.bytes_dead_left.to_le_bytes());
        self.transact(false, |txn| {
            txn.open_table(META)?.insert(META_COLLECTED, row.as_slice())?;
            Ok(())
        })
    }

    /// The last collection that is remembered.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn collected(&self) -> Result<Option<Collected>, StoreError> {
        guarded(&self.place, || {
            let txn = self.db.begin_read().map_err(|error| self.fault(error))?;
            let meta = txn.open_table(META).map_err(|error| self.fault(error))?;
            let row = meta.get(META_COLLECTED).map_err(|error| self.fault(error))?;
            Ok(row.and_then(|row| {
                let mut fields = Fields::new(row.value());
                Some(Collected { at_ms: fields.u64()?, bytes_dead_left: fields.u64()? })
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use gantry_common::ids::RepositoryId;

    use super::*;
    use crate::store::storage::Storage;
    use crate::store::storage::memory::MemoryStorage;

    #[test]
    fn the_last_collection_is_remembered() {
        let disk = MemoryStorage::new();
        disk.create_dir("index").unwrap();
        let open = || Index::open(&disk, "index/i", RepositoryId([1; 16]), true).unwrap();
        let index = open();
        assert_eq!(index.collected().unwrap(), None);
        for at_ms in [5, 9] {
            let collected = Collected { at_ms, bytes_dead_left: 7 * at_ms };
            index.set_collected(collected).unwrap();
            assert_eq!(index.collected().unwrap(), Some(collected));
        }
        index.flush().unwrap();
        drop(index);
        assert_eq!(open().collected().unwrap().unwrap().at_ms, 9);
    }
}
