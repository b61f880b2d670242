//! Water-filling: a rate shared by weight, where nobody gets more than it wants while another
//! wants more (weighted max-min fairness; Bertsekas and Gallager, Data Networks, 6.5.2).
//!
//! In: a rate (may be infinite), and for each taker its weight, what it wants and the most it may have.
//! Out: a rate for each; their sum is the rate, unless all have the most they may. What nobody wants is
//! given out too, by weight: it is room to grow into.

/// One of those who share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taker {
    pub weight: f64,
    pub wants: f64,
    pub most: f64,
}

/// A rate for each taker.
pub(super) fn fill(rate: f64, takers: &[Taker]) -> Vec<f64> {
    let mut given = vec![0.0; takers.len()];
    let left = pour(rate, &mut given, takers, |taker| taker.wants.min(taker.most));
    pour(left, &mut given, takers, |taker| taker.most);
    given
}

/// Raises everybody's level towards a goal; what is left over.
fn pour(rate: f64, given: &mut [f64], takers: &[Taker], goal: impl Fn(&Taker) -> f64) -> f64 {
    if rate.is_infinite() {
        for (held, taker) in given.iter_mut().zip(takers) {
            *held = goal(taker).max(*held);
        }
        return rate;
    }
    // In the order in which they are satisfied by a rising level.
    let missing = |index: usize| (goal(&takers[index]) - given[index]).max(0.0);
    let mut order: Vec<usize> = (0..takers.len()).collect();
    order.sort_by(|a, b| {
        let height = |index: usize| missing(index) / takers[index].weight;
        height(*a).total_cmp(&height(*b)).then(a.cmp(b))
    });
    let portions: Vec<f64> = (0..takers.len()).map(missing).collect();
    let mut weight: f64 = takers.iter().map(|taker| taker.weight).sum();
    let mut left = rate.max(0.0);
    for index in order {
        let share = left * takers[index].weight / weight.max(f64::MIN_POSITIVE);
        let portion = portions[index].min(share);
        given[index] += portion;
        left = (left - portion).max(0.0);
        weight -= takers[index].weight;
    }
    left
}

#[cfg(test)]
mod tests {
    use super::{Taker, fill};

    const ALL: f64 = f64::INFINITY;

    fn taker(weight: f64, wants: f64, most: f64) -> Taker {
        Taker { weight, wants, most }
    }

    #[test]
    fn what_one_does_not_want_goes_to_the_others() {
        let check = |rate, takers: &[Taker], expected: &[f64]| {
            let given = fill(rate, takers);
            for (one, other) in given.iter().zip(expected) {
                assert!((one - other).abs() < 1e-6 || one == other, "{given:?} {expected:?}");
            }
        };
        check(100.0, &[taker(1.0, ALL, ALL), taker(1.0, ALL, ALL)], &[50.0, 50.0]);
        check(100.0, &[taker(3.0, ALL, ALL), taker(1.0, ALL, ALL)], &[75.0, 25.0]);
        check(100.0, &[taker(1.0, 10.0, ALL), taker(1.0, ALL, ALL)], &[10.0, 90.0]);
        check(100.0, &[taker(1.0, 10.0, ALL), taker(1.0, 20.0, ALL)], &[45.0, 55.0]);
        check(100.0, &[taker(1.0, ALL, 30.0), taker(1.0, ALL, ALL)], &[30.0, 70.0]);
        check(100.0, &[taker(1.0, ALL, 30.0), taker(1.0, ALL, 40.0)], &[30.0, 40.0]);
        check(ALL, &[taker(1.0, 1.0, 30.0), taker(1.0, 1.0, ALL)], &[30.0, ALL]);
        check(100.0, &[], &[]);
    }

    #[test]
    fn nobody_who_wants_has_less_than_another_by_weight() {
        for seed in 0..2000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let draw = |random: &mut fastrand::Rng, all: bool| {
                if all && random.bool() { ALL } else { random.f64() * 50.0 }
            };
            let takers: Vec<Taker> = (0..random.usize(1..9))
                .map(|_| {
                    let weight = f64::from(random.u8(1..5));
                    taker(weight, draw(&mut random, true), draw(&mut random, true))
                })
                .collect();
            let rate = random.f64() * 200.0;
            let given = fill(rate, &takers);
            let sum: f64 = given.iter().sum();
            let most: f64 = takers.iter().map(|taker| taker.most).sum();
            assert!((sum - rate.min(most)).abs() < 1e-6, "seed {seed}: {sum} of {rate}");
            for (one, had) in takers.iter().zip(&given) {
                assert!(*had <= one.most + 1e-9, "seed {seed}");
                let satisfied = *had >= one.wants.min(one.most) - 1e-6;
                for (other, theirs) in takers.iter().zip(&given).filter(|_| !satisfied) {
                    let level = had / one.weight;
                    assert!(theirs / other.weight <= level + 1e-6, "seed {seed}: {given:?}");
                }
            }
        }
    }
}
