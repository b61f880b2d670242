//! Every bound of the control plane in one place. Units stand last in each name.
//!
//! What a vCenter or a mover says beyond one of these is refused with an error that names it.

/// Bytes of one XML document from a vCenter.
pub const XML_BYTES_MAX: usize = 32 << 20;
/// Elements within elements of such a document.
pub const XML_DEPTH_MAX: usize = 64;
/// Elements of such a document.
pub const XML_ELEMENTS_MAX: usize = 1 << 20;
/// Attributes of one element.
pub const XML_ATTRIBUTES_MAX: usize = 32;
/// Bytes of an element's name or of an attribute's value that is kept.
pub const XML_NAME_BYTES_MAX: usize = 256;
/// Bytes of a foreign text that is put into an error message.
pub const QUOTED_BYTES_MAX: usize = 300;

/// Seconds that one call waits for its answer, unless it waits on purpose.
pub const CALL_SECONDS_MAX: u64 = 120;
/// Seconds that a call for updates waits at the server.
pub const UPDATES_WAIT_SECONDS: u64 = 20;
/// Objects in one page of properties or updates.
pub const PAGE_OBJECTS: u32 = 50;
/// Pages of one listing.
pub const PAGES_MAX: usize = 10_000;
/// Tries of a call that may be repeated.
pub const CALL_TRIES_MAX: u32 = 4;
/// Milliseconds before the first repetition; doubles each time.
pub const CALL_PAUSE_MS: u64 = 250;
/// Milliseconds between repetitions at most.
pub const CALL_PAUSE_MS_MAX: u64 = 8_000;
/// Milliseconds between two looks at a task, where updates are not to be had.
pub const TASK_POLL_MS: u64 = 1_000;
/// Seconds between two calls that keep a session alive; vCenter ends one after 30 idle minutes.
pub const KEEP_ALIVE_SECONDS: u64 = 300;
/// Seconds that a task gets to end after it was asked to be cancelled.
pub const TASK_CANCEL_SECONDS_MAX: u64 = 60;
/// Connections to one vCenter: one waits for updates, one for a task of each running session.
pub const VCENTER_CONNECTIONS_MAX: usize = 24;

/// Virtual machines in one broker.
pub const BROKER_VMS_MAX: usize = 20_000;
/// Hosts, clusters, datastores, folders and datacenters in one broker, together.
pub const BROKER_PLACES_MAX: usize = 50_000;
/// Devices of one virtual machine that are kept: disks, their controllers, vTPM.
pub const VM_DEVICES_MAX: usize = 320;
/// Snapshots of one virtual machine that are kept.
pub const VM_SNAPSHOTS_MAX: usize = 256;
/// Files of one disk's chain that are kept.
pub const BACKING_CHAIN_MAX: usize = 64;
/// Custom attribute values of one virtual machine that are kept.
pub const VM_ATTRIBUTES_MAX: usize = 64;
/// Datastores of one virtual machine or host that are kept.
pub const OBJECT_DATASTORES_MAX: usize = 512;
/// Bytes of a foreign text that the broker keeps; a longer one is cut.
pub const FACT_TEXT_BYTES_MAX: usize = 1024;
/// Bytes of what a broker keeps for each virtual machine, as a mean: 250 take 16 MiB at most.
pub const VM_FACTS_BYTES_MEAN_MAX: usize = (16 << 20) / 250;
/// Folders within folders.
pub const FOLDER_DEPTH_MAX: usize = 64;
/// Milliseconds before a broker that lost its vCenter tries again; doubles up to a minute.
pub const BROKER_PAUSE_MS: u64 = 1_000;
/// Milliseconds between such tries at most.
pub const BROKER_PAUSE_MS_MAX: u64 = 60_000;
/// Seconds that making or registering a machine may take.
pub const REBUILD_SECONDS_MAX: u64 = 600;
/// Seconds that attaching or detaching a disk may take.
pub const RECONFIGURE_SECONDS_MAX: u64 = 300;

/// Events in one answer.
pub const EVENTS_MAX: usize = 10_000;

/// Seconds that a script may run, unless configured otherwise.
pub const SCRIPT_SECONDS: u64 = 600;
/// Bytes of a script that is brought into a guest.
pub const SCRIPT_BYTES_MAX: usize = 1 << 20;
/// Bytes of a script's output that are kept.
pub const SCRIPT_OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Seconds that a file's way into a guest may take.
pub const GUEST_TRANSFER_SECONDS_MAX: u64 = 120;
/// Milliseconds between two looks at a script.
pub const GUEST_POLL_MS: u64 = 1_000;
/// Tries to delete a script's folder.
pub const GUEST_REMOVE_TRIES_MAX: u32 = 5;

/// Separate changed areas of one disk, merged to whole blocks; beyond, the whole disk is read.
pub const CBT_AREAS_MAX: usize = 1 << 20;
/// Areas in one answer; vSphere gives 2,000.
pub const CBT_PAGE_AREAS_MAX: usize = 65_536;
/// Answers about one disk.
pub const CBT_PAGES_MAX: usize = 100_000;

/// Seconds that making a snapshot may take.
pub const SNAPSHOT_CREATE_SECONDS_MAX: u64 = 30 * 60;
/// Seconds that removing one may take: merging a large delta takes hours.
pub const SNAPSHOT_REMOVE_SECONDS_MAX: u64 = 24 * 3600;
/// Times that a snapshot is looked for after the answer to its creation was lost.
pub const SNAPSHOT_LOOKS_MAX: u32 = 12;
/// Milliseconds between those looks.
pub const SNAPSHOT_LOOK_MS: u64 = 5_000;
/// Seconds before each further round of removing a snapshot that will not go.
pub const SNAPSHOT_ROUND_PAUSES_SECONDS: [u64; 3] = [10, 60, 300];
/// Snapshots open on one datastore at a time, unless configured otherwise.
pub const DATASTORE_SNAPSHOTS_MAX: usize = 4;

/// Tasks that one mover may know: those that run, and those whose end gantryd has not taken in.
pub const MOVER_TASKS_MAX: usize = 4096;
/// Tasks of one mover that were forgotten since its last `Hello`; beyond, one of them is dropped.
pub const MOVER_FORGOTTEN_MAX: usize = 65_536;
/// Mounts and bytes of each text in a mover's facts.
pub const MOVER_MOUNTS_MAX: usize = 1024;
/// See [`MOVER_MOUNTS_MAX`].
pub const MOVER_TEXT_BYTES_MAX: usize = 4096;
/// Questions to one mover that wait for their answers.
pub const MOVER_QUESTIONS_MAX: usize = 64;
/// Bytes of restore points collected for one question, over all its pages.
pub const ANSWER_POINTS_BYTES_MAX: usize = 256 << 20;
/// Milliseconds that a mover gets to say `Hello`.
pub const HELLO_MS_MAX: u64 = 10_000;
/// Milliseconds that a question waits for its answer.
pub const ANSWER_MS_MAX: u64 = 120_000;
/// The same for looking after a repository: a verification of everything takes hours.
pub const MANAGE_MS_MAX: u64 = 24 * 3_600_000;
/// Credentials of one task.
pub const TASK_CREDENTIALS_MAX: usize = 64;
/// Bytes of a credential, and of its name.
pub const CREDENTIAL_BYTES_MAX: usize = 64 << 10;
/// See [`CREDENTIAL_BYTES_MAX`].
pub const CREDENTIAL_NAME_BYTES_MAX: usize = 64;
/// Commands that wait for one mover to take them; beyond, its connection is closed. More than two
/// for each of its tasks and their credentials.
pub const MOVER_COMMANDS_QUEUED_MAX: usize = 1 << 16;
/// Seconds between two looks whether the connected movers are still enrolled.
pub const ENROLLED_CHECK_SECONDS: u64 = 60;
/// Seconds that a session's ticket may hold.
pub const TICKET_SECONDS_MAX: u64 = 7 * 24 * 3600;
/// Seconds that an invitation of a mover may hold.
pub const INVITATION_SECONDS_MAX: u64 = 7 * 24 * 3600;
/// Days that a mover's certificate, and gantryd's own, holds.
pub const CERTIFICATE_DAYS: u64 = 90;
/// Days before its end from which on gantryd's own certificate is renewed.
pub const CERTIFICATE_RENEW_DAYS: u64 = 30;
/// Host names and addresses in gantryd's certificate.
pub const CERTIFICATE_NAMES_MAX: usize = 64;
