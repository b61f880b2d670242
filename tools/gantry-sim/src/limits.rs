//! Every bound of the simulator in one place.
//!
//! In: nothing. Out: constants. A client can never make the simulator hold more than these allow.

/// A SOAP request's body, bytes.
pub const REQUEST_BYTES_MAX: usize = 4 << 20;
/// Nesting of elements in a request.
pub const XML_DEPTH_MAX: usize = 64;
/// Elements in a request.
pub const XML_ELEMENTS_MAX: usize = 100_000;
/// Attributes of one element.
pub const XML_ATTRIBUTES_MAX: usize = 16;
/// Connections of one endpoint at a time.
pub const CONNECTIONS_MAX: usize = 512;
/// Sessions of one endpoint at a time ("Out of HTTP sessions" beyond).
pub const SESSIONS_MAX: usize = 1000;
/// Property collectors of one session.
pub const COLLECTORS_MAX: usize = 64;
/// Filters of one property collector.
pub const FILTERS_MAX: usize = 256;
/// Views of one session.
pub const VIEWS_MAX: usize = 256;
/// Paged retrievals that one session has open.
pub const RETRIEVALS_MAX: usize = 64;
/// Steps of one evaluation of a filter: what hostile traversals may cost.
pub const TRAVERSAL_STEPS_MAX: usize = 2_000_000;
/// Objects that a view or filter visits.
pub const OBJECTS_MAX: usize = 200_000;
/// Finished tasks that one endpoint remembers.
pub const TASKS_MAX: usize = 2000;
/// Events that one endpoint remembers.
pub const EVENTS_MAX: usize = 2000;
/// Seconds that a TLS handshake may take.
pub const HANDSHAKE_SECONDS_MAX: u64 = 20;
/// Seconds between looks at whether a waiting session still lives.
pub const WAIT_STEP_SECONDS: u64 = 5;
/// An inventory file, bytes.
pub const INVENTORY_BYTES_MAX: u64 = 16 << 20;
/// Text of names that clients choose (folders, snapshots, VMs), bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Tasks that an entity names as its recent ones.
pub const RECENT_TASKS_MAX: usize = 10;
/// Snapshots in a chain, as on real hosts.
pub const SNAPSHOT_DEPTH_MAX: usize = 32;
/// NFC leases that are remembered.
pub const LEASES_MAX: usize = 500;
/// Bytes of a datastore's file that one read takes.
pub const READ_BYTES: usize = 256 << 10;
/// Requests that are listed for drills, the newest.
pub const REQUESTS_LISTED_MAX: usize = 20_000;
/// Commands of a drill in one request or file, bytes.
pub const COMMANDS_BYTES_MAX: usize = 1 << 20;
/// Longest write of a built-in guest, bytes.
pub const GUEST_WRITE_BYTES: u64 = 64 << 10;
/// Files and folders of one simulated guest.
pub const GUEST_FILES_MAX: usize = 10_000;
/// A file of a simulated guest, bytes.
pub const GUEST_FILE_BYTES_MAX: usize = 16 << 20;
/// A path in a simulated guest, bytes.
pub const GUEST_PATH_BYTES_MAX: usize = 4096;
/// Processes that a simulated guest remembers, ended ones among them.
pub const GUEST_PROCESSES_MAX: usize = 1000;
/// Commands that one process of a simulated guest runs, at most.
pub const GUEST_COMMANDS_MAX: usize = 100_000;
/// Scripts that call scripts in a simulated guest.
pub const GUEST_SCRIPT_DEPTH_MAX: usize = 16;
/// File transfers of guest operations that may be open at a time.
pub const GUEST_TRANSFERS_MAX: usize = 1000;
/// How long a file transfer's address waits for its request.
pub const GUEST_TRANSFER_LIFE: std::time::Duration = std::time::Duration::from_secs(600);
