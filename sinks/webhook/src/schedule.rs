//! What waits for what: two requests of one key are never under way at the same time, and the later one begins when the earlier
//! one has ended.

use std::collections::{BTreeSet, HashMap};

use crate::request::Request;

/// Requests that have not ended.
#[derive(Default)]
pub(crate) struct Schedule {
    next: u64,
    nodes: HashMap<u64, Node>,
    /// The last request of each key, if it has not ended.
    last: HashMap<u64, u64>,
    /// The last request that all behind it wait for, if it has not ended.
    barrier: Option<u64>,
    /// Those that wait for none. Oldest first: with one at a time all go in the order in which they came.
    ready: BTreeSet<u64>,
    bytes: usize,
}

struct Node {
    /// Until it is taken.
    request: Option<Request>,
    keys: Vec<u64>,
    bytes: usize,
    /// How many others it waits for.
    blockers: usize,
    /// Those that wait for it.
    then: Vec<u64>,
}

impl Schedule {
    /// How many have not ended.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes of those that have not ended.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is one to take.
    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(crate) fn add(&mut self, request: Request) {
        let number = self.next;
        self.next += 1;
        let blockers: BTreeSet<u64> = match request.is_barrier {
            true => self.nodes.keys().copied().collect(),
            false => {
                let last = request.keys.iter().filter_map(|key| self.last.get(key));
                last.copied().chain(self.barrier).collect()
            }
        };
        for blocker in &blockers {
            if let Some(node) = self.nodes.get_mut(blocker) {
                node.then.push(number);
            }
        }
        let keys: Vec<u64> = request.keys.iter().copied().collect();
        self.last.extend(keys.iter().map(|key| (*key, number)));
        if request.is_barrier {
            self.barrier = Some(number);
        }
        if blockers.is_empty() {
            self.ready.insert(number);
        }
        let bytes = request.body.len();
        self.bytes += bytes;
        let node = Node {
            request: Some(request),
            keys,
            bytes,
            blockers: blockers.len(),
            then: Vec::new(),
        };
        self.nodes.insert(number, node);
    }

    /// The oldest that waits for none, with its number. It has not ended before [`Schedule::end`] says so.
    pub(crate) fn take(&mut self) -> Option<(u64, Request)> {
        let number = self.ready.pop_first()?;
        let request = self.nodes.get_mut(&number)?.request.take()?;
        Some((number, request))
    }

    /// The request has ended well: what waited for it alone may begin.
    pub(crate) fn end(&mut self, number: u64) {
        let Some(node) = self.nodes.remove(&number) else {
            return;
        };
        self.bytes -= node.bytes;
        for key in node.keys {
            if self.last.get(&key) == Some(&number) {
                self.last.remove(&key);
            }
        }
        if self.barrier == Some(number) {
            self.barrier = None;
        }
        for waiting in node.then {
            let Some(node) = self.nodes.get_mut(&waiting) else {
                continue;
            };
            node.blockers -= 1;
            if node.blockers == 0 {
                self.ready.insert(waiting);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use bytes::Bytes;
    use lockstep_conformance::history::Random;

    use super::*;
    use crate::address::Target;
    use crate::request::Head;

    fn request(id: usize, keys: &[u64], is_barrier: bool) -> Request {
        Request {
            target: Arc::new(Target {
                url: "http://h/".parse().expect("a URL"),
                shown: String::new(),
            }),
            id: id.to_string(),
            head: Head::Many,
            body: Bytes::from_static(b"12"),
            records: Vec::new(),
            keys: keys.iter().copied().collect(),
            is_barrier,
        }
    }

    /// Whether the later of two requests waits for the earlier one.
    fn waits(earlier: &(HashSet<u64>, bool), later: &(HashSet<u64>, bool)) -> bool {
        earlier.1 || later.1 || !earlier.0.is_disjoint(&later.0)
    }

    #[test]
    fn none_begins_before_what_it_waits_for_and_none_waits_for_more() {
        for seed in 1..200 {
            let mut random = Random(seed);
            let mut schedule = Schedule::default();
            let mut made: Vec<(HashSet<u64>, bool)> = Vec::new();
            let mut ended: HashSet<usize> = HashSet::new();
            let mut under_way: Vec<(u64, usize)> = Vec::new();
            while ended.len() < 100 {
                match random.below(3) {
                    0 if made.len() < 100 => {
                        let count = 1 + random.below(3);
                        let keys: Vec<u64> = (0..count).map(|_| random.below(12)).collect();
                        let is_barrier = random.below(15) == 0;
                        schedule.add(request(made.len(), &keys, is_barrier));
                        made.push((keys.into_iter().collect(), is_barrier));
                    }
                    1 if !under_way.is_empty() => {
                        let at = random.below(under_way.len() as u64) as usize;
                        let (number, index) = under_way.swap_remove(at);
                        schedule.end(number);
                        ended.insert(index);
                    }
                    _ => {
                        let begun: HashSet<usize> =
                            under_way.iter().map(|(_, index)| *index).collect();
                        let may = |index: &usize| {
                            !ended.contains(index)
                                && !begun.contains(index)
                                && (0..*index).all(|earlier| {
                                    ended.contains(&earlier)
                                        || !waits(&made[earlier], &made[*index])
                                })
                        };
                        let expected = (0..made.len()).find(may);
                        let taken = schedule.take().map(|(number, request)| {
                            (number, request.id.parse().expect("a number"))
                        });
                        assert_eq!(taken.map(|(_, index)| index), expected, "seed {seed}");
                        under_way.extend(taken);
                    }
                }
                let open = made.len() - ended.len();
                assert_eq!((schedule.len(), schedule.bytes()), (open, 2 * open));
            }
            assert!(schedule.last.is_empty() && schedule.barrier.is_none());
        }
    }
}
