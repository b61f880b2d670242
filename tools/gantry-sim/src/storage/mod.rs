//! The disk engine: datastores as folders of real files, snapshots as delta links, change tracking.
