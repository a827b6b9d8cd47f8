//! Where calls wait for their turn, by class: critical ones first, and one in sixteen turns for bulk. A class that has had calls
//! waiting for too long without a break is overloaded: the newest goes first then, and nobody waits for long (CoDel's idea, as
//! Facebook's "Fail at Scale" has it for requests).

use std::{collections::BTreeMap, time::Duration};

use valkyrie_protocol::{Priority, Time};

use super::LimiterPolicy;

/// Turns that others have before bulk has one.
const BEFORE_BULK: u32 = 15;
/// So long nothing is refused before an overload is over.
const CALM: Duration = Duration::from_secs(1);

/// The line of one server, and who has been served and is not done.
#[derive(Clone, Debug)]
pub struct Line<T> {
    policy: LimiterPolicy,
    lanes: [Lane<T>; 3],
    running: [u32; 3],
    last_ticket: u64,
    /// Turns of others since bulk began to wait, or had one.
    before_bulk: u32,
}

#[derive(Clone, Debug)]
struct Lane<T> {
    /// By ticket: the oldest first.
    waiting: BTreeMap<u64, Waiting<T>>,
    /// When it was empty for the last time.
    empty_at: Time,
    /// While it is overloaded: when the last one was refused.
    refused_at: Option<Time>,
}

#[derive(Clone, Debug)]
struct Waiting<T> {
    item: T,
    since: Time,
    /// Longer it waits in no case.
    until: Time,
}

impl<T> Line<T> {
    /// An empty line.
    pub fn new(policy: LimiterPolicy) -> Self {
        let lane = || Lane { waiting: BTreeMap::new(), empty_at: Time::default(), refused_at: None };
        Self { policy, lanes: [lane(), lane(), lane()], running: [0; 3], last_ticket: 0, before_bulk: 0 }
    }

    /// Those that run.
    pub fn running(&self) -> u32 {
        self.running.iter().sum()
    }

    /// How many of a class wait.
    pub fn waiting(&self, class: Priority) -> usize {
        self.lanes[class as usize].waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.waiting.is_empty())
    }

    /// One of a class runs, if the limit has room for it.
    #[inline]
    pub fn enter(&mut self, class: Priority, limit: u32) -> bool {
        let room = self.has_room(class, limit);
        self.running[class as usize] += u32::from(room);
        room
    }

    /// One that ran is done.
    #[inline]
    pub fn leave(&mut self, class: Priority) {
        self.running[class as usize] -= 1;
    }

    /// Whether a class may have one more: what it and each more urgent one may take, less what is taken of it.
    fn has_room(&self, class: Priority, limit: u32) -> bool {
        Priority::ALL[..=class as usize].iter().all(|above| {
            let taken: u32 = self.running[*above as usize..].iter().sum();
            taken < self.policy.share(*above, limit)
        })
    }

    /// One more waits: its ticket. None when too many of its class do.
    pub fn wait(&mut self, class: Priority, item: T, remaining: Option<Duration>, now: Time) -> Option<u64> {
        let lane = &mut self.lanes[class as usize];
        if lane.waiting.len() >= self.policy.max_waiting {
            return None;
        }
        if lane.waiting.is_empty() {
            lane.empty_at = now;
        }
        let most = remaining.map_or(self.policy.wait, |remaining| self.policy.wait.min(remaining / 2));
        self.last_ticket += 1;
        lane.waiting.insert(self.last_ticket, Waiting { item, since: now, until: now.after(most) });
        Some(self.last_ticket)
    }

    /// One that waited no longer does: what it was, if it still did.
    pub fn forget(&mut self, class: Priority, ticket: u64) -> Option<T> {
        Some(self.lanes[class as usize].waiting.remove(&ticket)?.item)
    }

    /// The next one, which runs then. Those that have waited for too long are `refused`.
    pub fn next(&mut self, limit: u32, now: Time, refused: &mut Vec<T>) -> Option<(Priority, T)> {
        let bulk_waits = !self.lanes[Priority::Bulk as usize].waiting.is_empty();
        if !bulk_waits {
            self.before_bulk = 0;
        }
        let is_bulks_turn = self.before_bulk >= BEFORE_BULK;
        let order = if is_bulks_turn {
            [Priority::Bulk, Priority::Critical, Priority::Normal]
        } else {
            Priority::ALL
        };
        for class in order {
            if self.has_room(class, limit)
                && let Some(item) = self.lanes[class as usize].next(&self.policy, now, refused)
            {
                self.running[class as usize] += 1;
                self.before_bulk = match class {
                    Priority::Bulk => 0,
                    _ => self.before_bulk + u32::from(bulk_waits),
                };
                return Some((class, item));
            }
        }
        None
    }

    /// Those that have waited for too long are `refused`.
    pub fn expire(&mut self, now: Time, refused: &mut Vec<T>) {
        for lane in &mut self.lanes {
            lane.expire(&self.policy, now, refused);
        }
    }
}

impl<T> Lane<T> {
    /// Whether it is overloaded, at `now`.
    fn is_overloaded(&mut self, policy: &LimiterPolicy, now: Time) -> bool {
        if self.refused_at.is_some_and(|at| now.since(at) >= CALM) {
            self.refused_at = None;
            self.empty_at = now;
        }
        if self.refused_at.is_none() && !self.waiting.is_empty() && now.since(self.empty_at) >= policy.wait {
            self.refused_at = Some(now);
        }
        self.refused_at.is_some()
    }

    fn next(&mut self, policy: &LimiterPolicy, now: Time, refused: &mut Vec<T>) -> Option<T> {
        let overloaded = self.is_overloaded(policy, now);
        loop {
            let (_, next) = match overloaded {
                true => self.waiting.pop_last()?,
                false => self.waiting.pop_first()?,
            };
            if !next.is_late(overloaded, policy, now) {
                return Some(next.item);
            }
            self.refuse(next.item, now, refused);
        }
    }

    fn expire(&mut self, policy: &LimiterPolicy, now: Time, refused: &mut Vec<T>) {
        let overloaded = self.is_overloaded(policy, now);
        let late = |(_, waiting): &(&u64, &Waiting<T>)| waiting.is_late(overloaded, policy, now);
        let late: Vec<u64> = self.waiting.iter().filter(late).map(|(ticket, _)| *ticket).collect();
        for waiting in late.iter().filter_map(|ticket| self.waiting.remove(ticket)).collect::<Vec<_>>() {
            self.refuse(waiting.item, now, refused);
        }
    }

    fn refuse(&mut self, item: T, now: Time, refused: &mut Vec<T>) {
        refused.push(item);
        if let Some(at) = &mut self.refused_at {
            *at = now;
        }
    }
}

impl<T> Waiting<T> {
    fn is_late(&self, overloaded: bool, policy: &LimiterPolicy, now: Time) -> bool {
        now >= self.until || overloaded && now.since(self.since) >= policy.overload_wait
    }
}

#[cfg(test)]
mod tests {
    use Priority::{Bulk, Critical, Normal};

    use super::*;

    const ALL: u32 = 1_000;

    fn ms(ms: u64) -> Time {
        Time::from_micros(ms * 1_000)
    }

    fn line(change: fn(&mut LimiterPolicy)) -> Line<u32> {
        let overload_wait = Duration::from_millis(5);
        let mut policy = LimiterPolicy { overload_wait, ..LimiterPolicy::default() };
        change(&mut policy);
        Line::new(policy)
    }

    #[test]
    fn classes_take_their_shares_and_leave_the_rest_to_the_more_urgent() {
        let mut line = line(|_| {});
        assert_eq!((0..20).filter(|_| line.enter(Bulk, 10)).count(), 5);
        assert_eq!((0..20).filter(|_| line.enter(Normal, 10)).count(), 3);
        assert_eq!((0..20).filter(|_| line.enter(Critical, 10)).count(), 2);
        assert_eq!(line.running(), 10);
        // What bulk gives back, others may have.
        (0..5).for_each(|_| line.leave(Bulk));
        assert_eq!((0..20).filter(|_| line.enter(Critical, 10)).count(), 5);
        assert!(!line.enter(Bulk, 10) && !line.enter(Normal, 10));
    }

    #[test]
    fn a_limit_of_one_serves_every_class() {
        for class in Priority::ALL {
            let mut line = line(|_| {});
            assert!(line.enter(class, 1) && !line.enter(Critical, 1), "{class:?}");
        }
    }

    #[test]
    fn serves_the_urgent_first_in_order_and_bulk_one_time_in_sixteen() {
        let mut line = line(|_| {});
        for number in 0..40 {
            line.wait(Normal, number, None, ms(0)).unwrap();
            line.wait(Bulk, 100 + number, None, ms(0)).unwrap();
        }
        line.wait(Critical, 200, None, ms(1)).unwrap();
        let mut refused = Vec::new();
        let served: Vec<u32> =
            std::iter::from_fn(|| line.next(ALL, ms(2), &mut refused).map(|(_, item)| item))
                .take(34)
                .collect();
        let expected: Vec<u32> =
            [200].into_iter().chain(0..14).chain([100]).chain(14..29).chain([101]).chain(29..31).collect();
        assert_eq!(served, expected);
        assert!(refused.is_empty(), "{refused:?}");
    }

    #[test]
    fn nobody_waits_for_longer_than_said_or_half_of_what_is_left() {
        let mut line = line(|_| {});
        line.wait(Normal, 1, None, ms(0)).unwrap();
        line.wait(Normal, 2, Some(Duration::from_millis(60)), ms(0)).unwrap();
        line.wait(Critical, 3, None, ms(10)).unwrap();
        let mut refused = Vec::new();
        line.expire(ms(29), &mut refused);
        assert!(refused.is_empty(), "{refused:?}");
        line.expire(ms(30), &mut refused);
        assert_eq!(refused, [2]);
        line.expire(ms(99), &mut refused);
        assert_eq!(refused, [2]);
        line.expire(ms(100), &mut refused);
        assert_eq!(refused, [2, 1]);
        assert_eq!(line.next(ALL, ms(110), &mut refused), None);
        assert_eq!(refused, [2, 1, 3]);
        assert!(line.is_empty());
    }

    #[test]
    fn under_overload_the_newest_goes_first_and_nobody_waits_for_long() {
        let mut line = line(|_| {});
        let mut refused = Vec::new();
        // One arrives each millisecond, and every second one is served: never empty.
        line.wait(Normal, 0, None, ms(0)).unwrap();
        for now in 1..100 {
            line.wait(Normal, now as u32, None, ms(now)).unwrap();
            if now % 2 == 0 {
                let (_, item) = line.next(ALL, ms(now), &mut refused).unwrap();
                assert_eq!(item, now as u32 / 2 - 1, "in order until it is too much");
            }
        }
        assert!(refused.is_empty(), "{refused:?}");
        line.wait(Normal, 100, None, ms(100)).unwrap();
        assert_eq!(line.next(ALL, ms(100), &mut refused), Some((Normal, 100)));
        line.expire(ms(100), &mut refused);
        assert_eq!(refused, (49..=95).collect::<Vec<_>>());
        assert_eq!(line.next(ALL, ms(100), &mut refused), Some((Normal, 99)));
        // Empty for a moment, it is overloaded still.
        refused.clear();
        line.expire(ms(105), &mut refused);
        assert_eq!((refused.clone(), line.is_empty()), (vec![96, 97, 98], true));
        line.wait(Normal, 1_000, None, ms(200)).unwrap();
        line.wait(Normal, 1_001, None, ms(201)).unwrap();
        assert_eq!(line.next(ALL, ms(202), &mut refused), Some((Normal, 1_001)));
        // And calm again after a second without a refusal.
        line.wait(Normal, 1_002, None, ms(1_200)).unwrap();
        line.wait(Normal, 1_003, None, ms(1_201)).unwrap();
        refused.clear();
        line.next(ALL, ms(1_202), &mut refused);
        assert_eq!((line.next(ALL, ms(1_202), &mut refused), refused), (Some((Normal, 1_003)), vec![1_000]));
    }

    #[test]
    fn a_class_that_is_overloaded_is_so_alone() {
        let mut line = line(|_| {});
        let mut refused = Vec::new();
        line.wait(Bulk, 0, None, ms(0)).unwrap();
        line.wait(Bulk, 1, None, ms(50)).unwrap();
        line.expire(ms(100), &mut refused);
        line.wait(Critical, 2, None, ms(100)).unwrap();
        line.wait(Critical, 3, None, ms(101)).unwrap();
        assert_eq!(line.next(ALL, ms(150), &mut refused), Some((Critical, 2)));
        assert_eq!(refused, [0, 1]);
    }

    #[test]
    fn is_bounded_and_forgets() {
        let mut line = line(|policy| policy.max_waiting = 2);
        let first = line.wait(Bulk, 1, None, ms(0)).unwrap();
        line.wait(Bulk, 2, None, ms(0)).unwrap();
        assert_eq!(line.wait(Bulk, 3, None, ms(0)), None);
        assert_eq!(line.forget(Bulk, first), Some(1));
        assert_eq!(line.forget(Bulk, first), None);
        assert!(line.wait(Bulk, 4, None, ms(0)).is_some());
        let mut refused = Vec::new();
        assert_eq!(line.next(ALL, ms(1), &mut refused), Some((Bulk, 2)));
    }
}
