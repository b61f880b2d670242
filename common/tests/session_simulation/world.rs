//! The world of one run: who may act next, what goes wrong, and when it is over.

use std::collections::{BTreeMap, VecDeque};

use gantry_common::ids::SessionId;
use gantry_common::session::sender::Sender;
use gantry_common::session::source_port::{SourceCommand, SourceReport};
use gantry_common::wire::ToTarget;

use crate::images::{Image, Payload, offer_of};
use crate::network::Connection;
use crate::pipeline::Pipeline;
use crate::plan::{Plan, Plant};
use crate::store::Store;
use crate::target::{Target, deliver};

const STEPS_MAX: u64 = 400_000;

/// What a run came upon.
#[derive(Debug, Default, Clone, Copy)]
pub struct Stats {
    pub steps: u64,
    pub losses: u64,
    pub target_crashes: u64,
    pub source_restarts: u64,
    pub changed_snapshots: u64,
    pub blocks_redone: u64,
    pub blocks_known: u64,
    pub blocks_unchanged: u64,
    pub blocks_resumed: u64,
    pub points: u64,
    pub repeated_marks: u64,
    pub repeated_blocks: u64,
}

impl Stats {
    /// Each count with its name.
    pub fn counts(&self) -> [(&'static str, u64); 12] {
        [
            ("steps", self.steps),
            ("losses", self.losses),
            ("target crashes", self.target_crashes),
            ("source restarts", self.source_restarts),
            ("changed snapshots", self.changed_snapshots),
            ("blocks redone", self.blocks_redone),
            ("blocks known", self.blocks_known),
            ("blocks unchanged", self.blocks_unchanged),
            ("blocks resumed", self.blocks_resumed),
            ("points", self.points),
            ("repeated marks", self.repeated_marks),
            ("repeated blocks", self.repeated_blocks),
        ]
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Stats) {
        self.steps += other.steps;
        self.losses += other.losses;
        self.target_crashes += other.target_crashes;
        self.source_restarts += other.source_restarts;
        self.changed_snapshots += other.changed_snapshots;
        self.blocks_redone += other.blocks_redone;
        self.blocks_known += other.blocks_known;
        self.blocks_unchanged += other.blocks_unchanged;
        self.blocks_resumed += other.blocks_resumed;
        self.points += other.points;
        self.repeated_marks += other.repeated_marks;
        self.repeated_blocks += other.repeated_blocks;
    }
}

/// Everything of one run.
pub struct World {
    plan: Plan,
    stats: Stats,
    images: Vec<Image>,
    /// The disks of every session there was, to compare its point with.
    sessions: BTreeMap<SessionId, Vec<Image>>,
    snapshot: u64,
    session: SessionId,
    sender: Sender<Payload>,
    pipeline: Pipeline,
    commands: VecDeque<SourceCommand>,
    reports: VecDeque<SourceReport<Payload>>,
    live: Option<Connection>,
    /// A connection that the source has lost and the target has not yet noticed.
    dying: Option<Connection>,
    target: Target,
    is_finished: bool,
}

impl World {
    /// The world of a plan, before anything has happened.
    pub fn new(mut plan: Plan) -> World {
        let random = &mut plan.random;
        let blocks_max = plan.blocks_max;
        let base: Vec<Image> =
            (0..plan.disks).map(|number| Image::random(random, number, blocks_max)).collect();
        let images: Vec<Image> = base.iter().map(|image| image.changed(random)).collect();
        let store = Store::new(plan.has_base.then_some(base), plan.plant);
        let session = SessionId([1; 16]);
        World {
            stats: Stats::default(),
            sessions: BTreeMap::from([(session, images.clone())]),
            snapshot: 0,
            session,
            sender: Sender::new(session, offer_of(&images, 0, plan.has_base), None, "sim".into()),
            pipeline: Pipeline::new(&images, plan.window),
            images,
            commands: VecDeque::new(),
            reports: VecDeque::new(),
            live: None,
            dying: None,
            target: Target::new(store, plan.first_credit, plan.plant),
            is_finished: false,
            plan,
        }
    }

    /// Acts until the session is committed.
    pub fn run(mut self) -> Result<Stats, String> {
        while !self.is_finished {
            self.stats.steps += 1;
            if self.stats.steps > STEPS_MAX {
                return Err(format!("not finished after {STEPS_MAX} steps"));
            }
            if self.plan.faults > 0 && self.plan.random.u32(0..self.plan.fault_every) == 0 {
                self.plan.faults -= 1;
                self.fault();
            }
            self.step()?;
        }
        self.check_end()?;
        self.take_statistics();
        Ok(self.stats)
    }

    /// Lets one part of the world act: a random one, or whichever can.
    fn step(&mut self) -> Result<(), String> {
        let weights = self.plan.weights;
        let mut roll = self.plan.random.u32(0..weights.iter().sum());
        let mut chosen = 0;
        while roll >= weights[chosen] {
            roll -= weights[chosen];
            chosen += 1;
        }
        for turn in 0..weights.len() {
            if self.act((chosen + turn) % weights.len())? {
                return Ok(());
            }
        }
        let progress: Vec<_> = self.sender.progress().collect();
        Err(format!("deadlock: nobody can act; {progress:?}"))
    }

    /// Whether the part of this number did something.
    fn act(&mut self, part: usize) -> Result<bool, String> {
        let random = &mut self.plan.random;
        match part {
            0 => Ok(self.connect()),
            1 => self.transmit(),
            2 => {
                let command = self.sender.poll_command();
                let acted = command.is_some();
                self.commands.extend(command);
                Ok(acted)
            }
            3 => self.command_pipeline(),
            4 => Ok(self.work_pipeline()),
            5 => Ok(self.report()),
            6 => match &mut self.live {
                Some(live) if live.is_void && (live.is_empty() || random.u8(0..8) == 0) => {
                    self.lose_connection();
                    Ok(true)
                }
                Some(live) => {
                    if live.is_accepted {
                        return deliver(&mut self.target, live, random);
                    }
                    let acted = deliver(&mut self.target, live, random)?;
                    self.dying.take_if(|_| acted);
                    Ok(acted)
                }
                None => Ok(false),
            },
            7 => match &mut self.dying {
                Some(dying) => {
                    if random.u8(0..8) > 0 && deliver(&mut self.target, dying, random)? {
                        return Ok(true);
                    }
                    if dying.is_accepted {
                        self.target.lose();
                    }
                    self.dying = None;
                    Ok(true)
                }
                None => Ok(false),
            },
            8 => self.transmit_back(),
            9 => self.deliver_back(),
            10 => Ok(self.target.command_store() || self.target.report(random)),
            11 => self.target.store.work(random),
            _ => Ok(self.target.report(random) || self.target.store.checkpoint()),
        }
    }

    fn connect(&mut self) -> bool {
        if self.live.is_some() || self.sender.is_finished() {
            return false;
        }
        let lanes = self.plan.random.usize(1..5);
        self.live = Some(Connection::new(lanes, self.plan.encodes));
        self.sender.handle_connected(lanes);
        true
    }

    fn transmit(&mut self) -> Result<bool, String> {
        let Some(live) = &mut self.live else { return Ok(false) };
        let Some(transmit) = self.sender.poll_transmit() else { return Ok(false) };
        if let ToTarget::Seal { task, totals, .. } = transmit.message
            && totals != self.pipeline.newest_totals(task)
        {
            return Err("a seal with totals that are not the newest".into());
        }
        let are_marks = matches!(transmit.message, ToTarget::Marks { .. });
        live.send(transmit);
        let is_rare = self.plan.random.u8(0..12) == 0;
        if is_rare && are_marks && self.plan.plant == Plant::MarksLost {
            live.lose_last_control();
        } else if is_rare && live.repeat_marks() {
            self.stats.repeated_marks += 1;
        }
        Ok(true)
    }

    fn command_pipeline(&mut self) -> Result<bool, String> {
        let Some(command) = self.commands.pop_front() else { return Ok(false) };
        match &command {
            SourceCommand::Finished { point, .. } => {
                self.is_finished = true;
                if !self.target.store.points.iter().any(|found| found.id == *point) {
                    return Err("finished without a point".into());
                }
            }
            SourceCommand::Failed { failure, .. } => return Err(format!("failed: {failure}")),
            SourceCommand::Redo { .. } if self.plan.plant == Plant::RedoLost => return Ok(true),
            SourceCommand::Start { durable, .. } => {
                self.stats.blocks_resumed += durable.iter().map(|run| run.count).sum::<u64>();
            }
            _ => {}
        }
        self.pipeline.handle(command).map(|()| true)
    }

    fn work_pipeline(&mut self) -> bool {
        let Some(report) = self.pipeline.work(&mut self.plan.random) else { return false };
        // A sent block may be redone, so a second report of it would be a fault of the pipeline's
        // once a connection is lost; without faults it only tries the receiver.
        if let SourceReport::Ready { task, block, head, payload } = &report
            && self.plan.repeats_blocks
            && self.plan.random.u8(0..16) == 0
        {
            let (task, block, head) = (*task, *block, *head);
            let payload = self.pipeline.buffer(payload.content);
            self.reports.push_back(SourceReport::Ready { task, block, head, payload });
            self.stats.repeated_blocks += 1;
        }
        self.reports.push_back(report);
        true
    }

    fn report(&mut self) -> bool {
        if !self.sender.accepts_reports() {
            return false;
        }
        let report = self.reports.pop_front();
        let acted = report.is_some();
        report.into_iter().for_each(|report| self.sender.handle_report(report));
        acted
    }

    fn transmit_back(&mut self) -> Result<bool, String> {
        let Some(frame) = self.target.poll_transmit()? else { return Ok(false) };
        // What the target says on a connection that is dying reaches nobody.
        if let Some(live) = self.live.as_mut().filter(|live| live.is_accepted && !live.is_void) {
            live.send_back(frame);
        }
        Ok(true)
    }

    fn deliver_back(&mut self) -> Result<bool, String> {
        let frame = self.live.as_mut().and_then(Connection::deliver_back);
        let Some(frame) = frame else { return Ok(false) };
        let name = format!("{frame:?}");
        let result = self.sender.handle_frame(frame);
        result.map(|()| true).map_err(|violation| format!("sender: {violation} ({name})"))
    }

    fn fault(&mut self) {
        match self.plan.random.u8(0..6) {
            0..3 => self.lose_connection(),
            3 => {
                self.lose_connection();
                self.dying = None;
                self.target.crash();
                self.stats.target_crashes += 1;
            }
            4 => {
                // The target crashes a while before the source notices.
                self.target.crash();
                self.dying = None;
                if let Some(live) = &mut self.live {
                    live.is_void = true;
                }
                self.stats.target_crashes += 1;
            }
            _ => self.restart_source(),
        }
    }

    fn lose_connection(&mut self) {
        let Some(mut live) = self.live.take() else { return };
        self.stats.losses += 1;
        self.sender.handle_disconnected();
        if let Some(dying) = self.dying.take()
            && dying.is_accepted
        {
            self.target.lose();
        }
        live.break_off(&mut self.plan.random);
        self.dying = Some(live).filter(|live| !live.is_void);
    }

    /// The source mover dies; another takes its place: the same session, or another session with
    /// the same snapshot (the journal is adopted), or with a later one (all starts over).
    fn restart_source(&mut self) {
        self.lose_connection();
        self.take_statistics();
        self.stats.source_restarts += 1;
        self.commands.clear();
        self.reports.clear();
        let what = self.plan.random.u8(0..3);
        if what > 0 {
            self.session = SessionId([self.sessions.len() as u8 + 1; 16]);
        }
        if what > 1 {
            self.snapshot += 1;
            self.stats.changed_snapshots += 1;
            let random = &mut self.plan.random;
            self.images = self.images.iter().map(|image| image.changed(random)).collect();
        }
        self.sessions.insert(self.session, self.images.clone());
        let offer = offer_of(&self.images, self.snapshot, self.plan.has_base);
        self.sender = Sender::new(self.session, offer, None, "sim".into());
        self.pipeline = Pipeline::new(&self.images, self.plan.window);
    }

    fn take_statistics(&mut self) {
        self.stats.blocks_redone += self.pipeline.redone;
        self.stats.blocks_known += self.pipeline.known;
        self.stats.blocks_unchanged += self.pipeline.unchanged;
    }

    /// Every point there is equals the disks of its session, and ours is among them.
    fn check_end(&mut self) -> Result<(), String> {
        let mut is_ours_there = false;
        for point in &self.target.store.points {
            let Some(session) = point.session else { continue };
            self.stats.points += 1;
            is_ours_there |= session == self.session;
            if self.sessions.get(&session) != Some(&point.images) {
                return Err(format!("the point of {session} is not what its disks held"));
            }
        }
        if !is_ours_there || !self.sender.is_committed() {
            return Err("the session is finished and not committed".into());
        }
        let progress: Vec<_> = self.sender.progress().collect();
        let is_whole = progress.iter().all(|disk| disk.accounted == disk.blocks);
        // A session that was committed before this source mover came has nothing to account for.
        let had_nothing_to_do = progress.iter().all(|disk| disk.accounted == 0);
        if !is_whole && !had_nothing_to_do && self.stats.source_restarts == 0 {
            return Err(format!("blocks without account: {progress:?}"));
        }
        Ok(())
    }
}
