//! Retention: which restore points of a VM stay, and which flags a new one gets.
//!
//! In: points with their flags, a policy, the time. Out: for each point the reasons that keep it;
//! none: it goes. Pure. Invariant: the newest readable point, protected ones and those that cannot
//! be read always stay. Must not: read a clock or a disk.

use gantry_common::ids::PointId;
use gantry_common::manage::{KeepReason, PointFlags, Retention};
use jiff::{Timestamp, civil::Date, tz::TimeZone};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// A point as retention sees it. Its age is that of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The point.
    pub point: PointId,
    /// Its flags; nothing if its manifest cannot be read.
    pub flags: Option<PointFlags>,
}

/// Why each point stays, oldest first.
pub fn decide(
    points: &[Candidate],
    retention: &Retention,
    now_ms: u64,
) -> Vec<(Candidate, Vec<KeepReason>)> {
    let mut newest_first = points.to_vec();
    newest_first.sort_by_key(|candidate| std::cmp::Reverse(candidate.point));
    let mut newest = Quota(u64::from(retention.points_min.max(1)));
    let mut weekly = Quota(retention.weekly.into());
    let mut monthly = Quota(retention.monthly.into());
    let mut yearly = Quota(retention.yearly.into());
    let mut decisions: Vec<_> = newest_first
        .into_iter()
        .map(|candidate| {
            let Some(flags) = candidate.flags else {
                return (candidate, vec![KeepReason::Unreadable]);
            };
            let age_ms = now_ms.saturating_sub(candidate.point.created_ms());
            let reasons = [
                (KeepReason::Protected, flags.has(PointFlags::PROTECTED)),
                (KeepReason::Newest, newest.take()),
                (KeepReason::Days, age_ms < u64::from(retention.days) * DAY_MS),
                (KeepReason::Weekly, flags.has(PointFlags::WEEKLY) && weekly.take()),
                (KeepReason::Monthly, flags.has(PointFlags::MONTHLY) && monthly.take()),
                (KeepReason::Yearly, flags.has(PointFlags::YEARLY) && yearly.take()),
            ];
            let keep = reasons.into_iter().filter(|(_, holds)| *holds);
            (candidate, keep.map(|(reason, _)| reason).collect())
        })
        .collect();
    decisions.reverse();
    decisions
}

/// So many points may still be kept for a reason.
struct Quota(u64);

impl Quota {
    fn take(&mut self) -> bool {
        let left = self.0 > 0;
        self.0 = self.0.saturating_sub(1);
        left
    }
}

/// Flags of a new point: those periods that the policy counts and that no other point of the name
/// stands for yet.
pub fn flags_of_new(new: PointId, points: &[Candidate], retention: &Retention) -> PointFlags {
    let periods: [(PointFlags, u32, Period); 3] = [
        (PointFlags::WEEKLY, retention.weekly, week),
        (PointFlags::MONTHLY, retention.monthly, month),
        (PointFlags::YEARLY, retention.yearly, year),
    ];
    let Some(day) = day_of(new) else { return PointFlags::default() };
    let mut flags = PointFlags::default();
    for (flag, wanted, period) in periods {
        let is_taken = points.iter().any(|other| {
            other.point != new
                && other.flags.is_some_and(|flags| flags.has(flag))
                && day_of(other.point).is_some_and(|other| period(other) == period(day))
        });
        if wanted > 0 && !is_taken {
            flags = flags.with(flag, true);
        }
    }
    flags
}

/// A period, as a pair that no other period has.
type Period = fn(Date) -> (i16, i8);

/// ISO 8601: weeks begin on Monday and belong to the year of their Thursday.
fn week(day: Date) -> (i16, i8) {
    let week = day.iso_week_date();
    (week.year(), week.week())
}

fn month(day: Date) -> (i16, i8) {
    (day.year(), day.month())
}

fn year(day: Date) -> (i16, i8) {
    (day.year(), 0)
}

/// The day in UTC on which a point was made; nothing beyond the year 9999.
fn day_of(point: PointId) -> Option<Date> {
    let ms = i64::try_from(point.created_ms()).ok()?;
    Some(Timestamp::from_millisecond(ms).ok()?.to_zoned(TimeZone::UTC).date())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn at(day: &str, flags: u32) -> Candidate {
        let made: Timestamp = format!("{day}T12:00:00Z").parse().unwrap();
        let point = PointId::new(made.as_millisecond() as u64, [7; 10]);
        Candidate { point, flags: Some(PointFlags(flags)) }
    }

    fn kept(points: &[Candidate], retention: &Retention, now: Candidate) -> Vec<usize> {
        let decisions = decide(points, retention, now.point.created_ms());
        let stay = |point: &Candidate| {
            let found = decisions.iter().find(|(candidate, _)| candidate.point == point.point);
            !found.unwrap().1.is_empty()
        };
        (0..points.len()).filter(|number| stay(&points[*number])).collect()
    }

    #[test]
    fn days_minimum_and_flags_each_keep_their_own() {
        let points = [
            at("2026-01-01", PointFlags::YEARLY.0 | PointFlags::MONTHLY.0 | PointFlags::WEEKLY.0),
            at("2026-01-02", PointFlags::PROTECTED.0),
            at("2026-02-01", PointFlags::MONTHLY.0),
            at("2026-02-02", PointFlags::WEEKLY.0),
            at("2026-02-09", PointFlags::WEEKLY.0),
            at("2026-02-10", 0),
            at("2026-02-11", 0),
        ];
        let now = at("2026-02-12", 0);
        let none = Retention { points_min: 1, ..Retention::default() };
        assert_eq!(kept(&points, &none, now), [1, 6]);
        assert_eq!(kept(&points, &Retention { points_min: 0, ..none }, now), [1, 6]);
        assert_eq!(kept(&points, &Retention { points_min: 3, ..none }, now), [1, 4, 5, 6]);
        assert_eq!(kept(&points, &Retention { days: 3, ..none }, now), [1, 5, 6]);
        assert_eq!(kept(&points, &Retention { weekly: 2, ..none }, now), [1, 3, 4, 6]);
        assert_eq!(kept(&points, &Retention { monthly: 1, ..none }, now), [1, 2, 6]);
        assert_eq!(kept(&points, &Retention { yearly: 5, ..none }, now), [0, 1, 6]);
        let mut unreadable = points;
        unreadable[6].flags = None;
        unreadable[3].flags = None;
        assert_eq!(kept(&unreadable, &none, now), [1, 3, 5, 6], "the newest readable stays");
    }

    #[test]
    fn the_first_of_a_period_is_flagged() {
        let all = Retention { weekly: 1, monthly: 1, yearly: 1, ..Retention::default() };
        let mut made: Vec<Candidate> = Vec::new();
        let mut flag = |day: &str, retention: &Retention| {
            let mut new = at(day, 0);
            let flags = flags_of_new(new.point, &made, retention);
            new.flags = Some(flags);
            made.push(new);
            flags.names().join(" ")
        };
        assert_eq!(flag("2025-12-28", &Retention::default()), "", "nothing is asked for");
        assert_eq!(flag("2025-12-28", &all), "weekly monthly yearly");
        // Monday of ISO week 1 of 2026, still in December.
        assert_eq!(flag("2025-12-29", &all), "weekly");
        assert_eq!(flag("2026-01-01", &all), "monthly yearly");
        assert_eq!(flag("2026-01-04", &all), "");
        assert_eq!(flag("2026-01-05", &all), "weekly");
        assert_eq!(flag("2026-02-01", &all), "weekly monthly");
        assert_eq!(flag("2027-01-01", &Retention { monthly: 0, ..all }), "weekly yearly");
        // What stood for the week was deleted: the next one takes its place.
        made.retain(|point| point.point != at("2026-01-05", 0).point);
        assert_eq!(flags_of_new(at("2026-01-06", 0).point, &made, &all).names(), ["weekly"]);
    }

    /// The rules one by one, without a shared loop.
    fn model(points: &[Candidate], retention: &Retention, now_ms: u64) -> BTreeSet<PointId> {
        let readable: Vec<&Candidate> =
            points.iter().filter(|point| point.flags.is_some()).collect();
        let rank = |of: &Candidate, flag: PointFlags| {
            let newer = readable.iter().filter(|other| {
                other.point > of.point && other.flags.is_some_and(|flags| flags.has(flag))
            });
            newer.count() as u32
        };
        let stays = |point: &&Candidate| {
            let Some(flags) = point.flags else { return true };
            let among = |flag: PointFlags, count: u32| flags.has(flag) && rank(point, flag) < count;
            let age_ms = i128::from(now_ms) - i128::from(point.point.created_ms());
            let age_ms = age_ms.max(0);
            flags.has(PointFlags::PROTECTED)
                || rank(point, PointFlags::default()) < retention.points_min.max(1)
                || age_ms < i128::from(retention.days) * i128::from(DAY_MS)
                || among(PointFlags::WEEKLY, retention.weekly)
                || among(PointFlags::MONTHLY, retention.monthly)
                || among(PointFlags::YEARLY, retention.yearly)
        };
        points.iter().filter(stays).map(|point| point.point).collect()
    }

    #[test]
    fn decisions_follow_the_rules_whatever_the_points() {
        for seed in 0..4000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut points: Vec<Candidate> = (0..random.usize(0..30))
                .map(|number| Candidate {
                    point: PointId::new(random.u64(0..60) * DAY_MS / 2, [number as u8; 10]),
                    flags: (random.u8(0..8) > 0).then(|| PointFlags(random.u32(0..16))),
                })
                .collect();
            random.shuffle(&mut points);
            let few = |random: &mut fastrand::Rng| random.u32(0..5) * random.u32(0..3);
            let retention = Retention {
                days: few(&mut random),
                points_min: few(&mut random),
                weekly: few(&mut random),
                monthly: few(&mut random),
                yearly: few(&mut random),
            };
            let now_ms = random.u64(0..40) * DAY_MS;
            let decisions = decide(&points, &retention, now_ms);
            assert_eq!(decisions.len(), points.len(), "seed {seed}");
            assert!(decisions.is_sorted_by_key(|(point, _)| point.point), "seed {seed}");
            let stay = decisions.iter().filter(|(_, reasons)| !reasons.is_empty());
            let stay: BTreeSet<PointId> = stay.map(|(point, _)| point.point).collect();
            assert_eq!(stay, model(&points, &retention, now_ms), "seed {seed} {retention:?}");
            // What is decided twice is decided in the same way: nothing goes by and by.
            let left: Vec<Candidate> =
                points.iter().filter(|point| stay.contains(&point.point)).copied().collect();
            let again = decide(&left, &retention, now_ms);
            assert!(again.iter().all(|(_, reasons)| !reasons.is_empty()), "seed {seed}");
        }
    }
}
