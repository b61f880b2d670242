//! The estate and its distributions, drawn from a seed.
//!
//! * Machines: 1,000 with three disks. Disk 1 (system): log-normal, median 40 GiB, sigma 0.5. Disks 2
//!   and 3 (data): log-normal, median 60 GiB, sigma 1.0. All between 1 GiB and 512 GiB.
//! * A task reads 200 MiB/s after 10 s of its own: 3,000 tasks, about 1.2 million seconds of work.
//! * 20 sessions; a machine is in the k-th of them with a weight of 1/k (a few large jobs, many
//!   small ones); one priority, or 4 to 6 with `Losses`
//!   (priority decides who ends first, not when all end). One machine in 20 is wanted by a second session with `Losses`.
//! * 100 proxies: four in five with 2 slots, one in five with 4. Each mounts a quarter of the datastores;
//!   one in two can hot-add a half of them; all have NBD or HTTPS everywhere.
//! * 80 datastores, at most 4 open snapshots each (12 datastores with `Losses`, which binds).
//!   A machine lies on the one that was least filled, as storage that is looked after is.
//! * 10 repositories with 40 slots, or with the default of 4 (`RepositoryBound`); half of them prefer
//!   30 proxies. Quiet nights let a machine go to any; with `Losses` each job has one.
//! * A snapshot takes 2 to 6 s to make and 5 s to remove.
//! * `Losses`: sessions come over an hour; a proxy is lost every 2 hours on average (exponential) for
//!   10 min and is missed after 30 s; one start in 100 finds its road blocked, one task in 200 fails;
//!   a datastore is called slow every 10 min for 5 min.

use std::collections::BTreeSet;
use std::time::Duration;

use gantry_scheduler::{
    Datastore, DatastoreName, DiskRequest, Proxy, ProxyName, Repository, RepositoryName, TaskId,
    TransportMode, VmRequest,
};

const MIB: f64 = (1u64 << 20) as f64;
const GIB: u64 = 1 << 30;

/// What the night is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    ProxyBound,
    RepositoryBound,
    Losses,
}

pub struct Estate {
    pub seed: u64,
    pub shape: Shape,
    pub proxies: Vec<Proxy>,
    pub repositories: Vec<Repository>,
    pub datastores: Vec<Datastore>,
    /// With the time at which each is queued, in order.
    pub requests: Vec<(Duration, VmRequest)>,
}

/// How long a task takes on a slot of its own.
pub fn work_ms(read_bytes: u64) -> u64 {
    10_000 + (read_bytes as f64 / (200.0 * MIB) * 1000.0) as u64
}

fn normal(random: &mut fastrand::Rng) -> f64 {
    // Box and Muller, 1958.
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.f64()).cos()
}

fn log_normal_bytes(random: &mut fastrand::Rng, median_gib: f64, sigma: f64) -> u64 {
    let bytes = median_gib * (sigma * normal(random)).exp() * GIB as f64;
    (bytes as u64).clamp(GIB, 512 * GIB)
}

impl Estate {
    pub fn draw(seed: u64, shape: Shape) -> Estate {
        let mut random = fastrand::Rng::with_seed(seed);
        let datastores = if shape == Shape::Losses { 12 } else { 80 };
        let datastores: Vec<Datastore> =
            (0..datastores).map(|n| Datastore::new(format!("ds{n:02}").into())).collect();
        let proxies = (0..100).map(|n| draw_proxy(&mut random, n, &datastores)).collect();
        let repositories = (0..10).map(|n| draw_repository(&mut random, n, shape)).collect();
        let requests = draw_requests(&mut random, shape, &datastores);
        Estate { seed, shape, proxies, repositories, datastores, requests }
    }

    pub fn tasks(&self) -> usize {
        self.requests.iter().map(|(_, request)| request.disks.len()).sum()
    }

    /// Total work over slots, or the longest machine: no scheduler can be faster.
    pub fn bound_ms(&self) -> u64 {
        let disks = || self.requests.iter().flat_map(|(_, request)| &request.disks);
        let total: u64 = disks().map(|disk| work_ms(disk.read_bytes)).sum();
        let longest = disks().map(|disk| work_ms(disk.read_bytes)).max().unwrap_or(0);
        let of_proxies: u32 = self.proxies.iter().map(|proxy| proxy.slots).sum();
        let of_repositories: u32 = self.repositories.iter().map(|one| one.slots).sum();
        (total / u64::from(of_proxies.min(of_repositories))).max(longest)
    }
}

fn draw_proxy(random: &mut fastrand::Rng, number: usize, datastores: &[Datastore]) -> Proxy {
    let everywhere = if random.bool() { TransportMode::Nbd } else { TransportMode::Https };
    let hotadds = random.bool();
    let mut local = std::collections::BTreeMap::<DatastoreName, BTreeSet<TransportMode>>::new();
    for datastore in datastores {
        let mut modes = BTreeSet::new();
        if random.u8(..4) == 0 {
            modes.insert(TransportMode::Direct);
        }
        if hotadds && random.bool() {
            modes.insert(TransportMode::Hotadd);
        }
        if !modes.is_empty() {
            local.insert(datastore.name.clone(), modes);
        }
    }
    Proxy {
        name: format!("proxy{number:02}").into(),
        slots: if random.u8(..5) == 0 { 4 } else { 2 },
        load_percent: random.u8(..60),
        enabled: true,
        everywhere: [everywhere].into(),
        datastores: local,
    }
}

fn draw_repository(random: &mut fastrand::Rng, number: usize, shape: Shape) -> Repository {
    let mut repository = Repository::new(format!("repo{number}").into(), 400 * 1024 * GIB);
    if shape != Shape::RepositoryBound {
        repository.slots = 40;
    }
    if random.bool() {
        let preferred = (0..30).map(|_| ProxyName::from(format!("proxy{:02}", random.u8(..100))));
        repository.affinity = preferred.collect();
    }
    repository
}

fn draw_requests(
    random: &mut fastrand::Rng,
    shape: Shape,
    datastores: &[Datastore],
) -> Vec<(Duration, VmRequest)> {
    let weights: Vec<f64> = (1..=20).map(|k| 1.0 / f64::from(k)).collect();
    let total: f64 = weights.iter().sum();
    let repository = |n: u8| RepositoryName::from(format!("repo{n}"));
    let fixed: Vec<u8> = (0..20).map(|_| random.u8(..10)).collect();
    let priorities: Vec<u8> =
        (0..20).map(|_| if shape == Shape::Losses { random.u8(4..=6) } else { 5 }).collect();
    let mut tasks = (0..).map(TaskId);
    let mut requests = Vec::new();
    let mut filled_bytes = vec![0u64; datastores.len()];
    for machine in 0..1000 {
        let mut draw = random.f64() * total;
        let job = weights.iter().position(|weight| {
            draw -= weight;
            draw < 0.0
        });
        let job = job.unwrap_or(0);
        let sizes = [(40.0, 0.5), (60.0, 1.0), (60.0, 1.0)];
        let sizes = sizes.map(|(median, sigma)| log_normal_bytes(random, median, sigma));
        let filled = filled_bytes.iter().enumerate().min_by_key(|(_, bytes)| **bytes);
        let datastore = filled.map_or(0, |(index, _)| index);
        filled_bytes[datastore] += sizes.iter().sum::<u64>();
        let twice = shape == Shape::Losses && random.u8(..20) == 0;
        for job in std::iter::once(job).chain(twice.then_some((job + 1) % 20)) {
            let any = || (0..10).map(repository).collect();
            let disks = sizes.iter().zip(&mut tasks).map(|(size, task)| DiskRequest {
                task,
                datastore: datastores[datastore].name.clone(),
                read_bytes: *size,
                refused: BTreeSet::new(),
            });
            let request = VmRequest {
                session: format!("session{job:02}").into(),
                job: format!("job{job:02}").into(),
                priority: priorities[job],
                vm: format!("vm{machine:04}").into(),
                repositories: match shape {
                    Shape::Losses => vec![repository(fixed[job])],
                    _ => any(),
                },
                store_bytes: sizes.iter().sum::<u64>() / 2,
                modes: TransportMode::ALL.into_iter().collect(),
                proxies: BTreeSet::new(),
                disks: disks.collect(),
            };
            let minutes = if shape == Shape::Losses { job as u64 * 3 } else { 0 };
            requests.push((Duration::from_secs(60 * minutes), request));
        }
    }
    requests.sort_by_key(|(at, _)| *at);
    requests
}
