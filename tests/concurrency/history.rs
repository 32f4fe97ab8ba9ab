//! Linearizability checker for the calls on one name, modelled as a register: Wing and Gong's search with memoized
//! states (Lowe, 2017).

use std::collections::HashSet;
use std::time::Instant;

/// The state of a name: the object's UUID and number of blocks, or none.
pub type Object = Option<(String, i64)>;

/// A call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// With this number of blocks.
    Create(i64),
    /// To this number of blocks.
    Update(i64),
    Get,
    Delete,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The object, by UUID and number of blocks.
    Is(String, i64),
    /// The object has been deleted.
    Deleted,
    NotFound,
    AlreadyExists,
}

/// A completed call.
#[derive(Debug, Clone)]
pub struct Record {
    pub call: Call,
    pub begin: Instant,
    pub end: Instant,
    pub answer: Answer,
}

impl Record {
    /// Returns the state after the call if this answer is possible in state `before`, else `None`.
    fn step(&self, before: &Object) -> Option<Object> {
        let is = |uuid: &String, blocks: i64| Some((uuid.clone(), blocks));
        match (self.call, before, &self.answer) {
            (Call::Create(asked), None, Answer::Is(uuid, blocks)) if asked == *blocks => {
                Some(is(uuid, asked))
            }
            (Call::Create(asked), Some((_, blocks)), Answer::AlreadyExists) if asked != *blocks => {
                Some(before.clone())
            }
            (Call::Update(asked), Some((found, _)), Answer::Is(uuid, blocks))
                if found == uuid && asked == *blocks =>
            {
                Some(is(uuid, asked))
            }
            // An idempotent (repeated) create, or a read.
            (Call::Create(_) | Call::Get, Some((found, held)), Answer::Is(uuid, blocks)) => {
                let is_asked = !matches!(self.call, Call::Create(asked) if asked != *held);
                (is_asked && found == uuid && held == blocks).then(|| before.clone())
            }
            (Call::Delete, Some(_), Answer::Deleted)
            | (Call::Update(_) | Call::Get | Call::Delete, None, Answer::NotFound) => Some(None),
            _ => None,
        }
    }
}

impl Record {
    /// Returns whether the call never changes the state. A create answered with the object may have created it.
    fn only_reads(&self) -> bool {
        let is_refused = matches!(self.answer, Answer::NotFound | Answer::AlreadyExists);
        is_refused || self.call == Call::Get
    }
}

/// Bit set of the calls that have been placed in the order.
type Placed = Vec<u64>;

fn has(placed: &[u64], at: usize) -> bool {
    placed[at / 64] & (1 << (at % 64)) != 0
}

fn place(placed: &mut Placed, at: usize) {
    placed[at / 64] |= 1 << (at % 64);
}

struct Search<'a> {
    records: &'a [Record],
    met: HashSet<(Placed, Object)>,
    /// The longest order found so far.
    longest: Vec<usize>,
}

impl Search<'_> {
    /// Returns the calls that can come next, by end time: a call that began after another one's end must come after it.
    fn next(&self, placed: &[u64]) -> Vec<usize> {
        let rest = || (0..self.records.len()).filter(|at| !has(placed, *at));
        let Some(first_end) = rest().map(|at| self.records[at].end).min() else {
            return Vec::new();
        };
        let mut next: Vec<_> = rest()
            .filter(|at| self.records[*at].begin <= first_end)
            .collect();
        next.sort_by_key(|at| self.records[*at].end);
        next
    }

    /// Searches for an order of the remaining calls after `order`, which leads to state `object`.
    fn goes_on(&mut self, mut placed: Placed, mut order: Vec<usize>, object: &Object) -> bool {
        let mut next = self.next(&placed);
        // A read that is possible here can be placed at once: no backtracking over it is needed.
        let is_read = |at: &usize| {
            let record = &self.records[*at];
            record.only_reads() && record.step(object).is_some()
        };
        while let Some(at) = next.iter().copied().find(is_read) {
            place(&mut placed, at);
            order.push(at);
            next = self.next(&placed);
        }
        if order.len() > self.longest.len() {
            self.longest.clone_from(&order);
        }
        if order.len() == self.records.len() {
            return true;
        }
        for at in next {
            let Some(after) = self.records[at].step(object) else {
                continue;
            };
            let mut placed = placed.clone();
            place(&mut placed, at);
            if self.met.insert((placed.clone(), after.clone())) {
                let mut order = order.clone();
                order.push(at);
                if self.goes_on(placed, order, &after) {
                    return true;
                }
            }
        }
        false
    }
}

/// Checks that some order of these calls on one name, which did not exist before, explains every answer.
///
/// # Errors
/// Describes the calls after which no order continues.
pub fn explain(records: &[Record]) -> Result<(), String> {
    let mut search = Search {
        records,
        met: HashSet::new(),
        longest: Vec::new(),
    };
    let placed = vec![0; records.len().div_ceil(64)];
    if search.goes_on(placed, Vec::new(), &None) {
        return Ok(());
    }
    let longest = &search.longest;
    let last = longest.iter().rev().take(5).rev().map(|at| &records[*at]);
    let mut rest: Vec<_> = (0..records.len())
        .filter(|at| !longest.contains(at))
        .collect();
    rest.sort_by_key(|at| records[*at].end);
    let rest = rest.into_iter().take(20).map(|at| &records[at]);
    Err(format!(
        "no order explains more than {} of {} answers; after\n{:#?}\nnone of these can follow:\n{:#?}",
        longest.len(),
        records.len(),
        last.collect::<Vec<_>>(),
        rest.collect::<Vec<_>>()
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Builds records from begin and end times in milliseconds.
    fn records(calls: &[(u64, u64, Call, Answer)]) -> Vec<Record> {
        let zero = Instant::now();
        let at = |ms: &u64| zero + Duration::from_millis(*ms);
        let record = |(begin, end, call, answer): &(u64, u64, Call, Answer)| Record {
            call: *call,
            begin: at(begin),
            end: at(end),
            answer: answer.clone(),
        };
        calls.iter().map(record).collect()
    }

    fn is(uuid: &str, blocks: i64) -> Answer {
        Answer::Is(uuid.to_owned(), blocks)
    }

    #[test]
    fn what_some_order_gives_is_explained() {
        use Call::{Create, Delete, Get, Update};
        for good in [
            vec![],
            vec![
                (0, 1, Get, Answer::NotFound),
                (2, 3, Create(64), is("a", 64)),
            ],
            // Of two overlapping calls the one that ends later takes effect first.
            vec![(0, 9, Create(64), is("a", 64)), (1, 2, Get, is("a", 64))],
            vec![
                (0, 1, Create(64), is("a", 64)),
                (2, 9, Delete, Answer::Deleted),
                (3, 8, Delete, Answer::NotFound),
                (4, 7, Create(64), is("b", 64)),
                (5, 6, Get, is("a", 64)),
            ],
            vec![
                (0, 1, Create(64), is("a", 64)),
                (2, 5, Update(128), is("a", 128)),
                (3, 4, Create(64), Answer::AlreadyExists),
                (6, 7, Create(128), is("a", 128)),
            ],
        ] {
            assert_eq!(explain(&records(&good)), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn what_no_order_gives_is_told() {
        use Call::{Create, Delete, Get, Update};
        for bad in [
            // A lost update, and a read of the future.
            vec![
                (0, 1, Create(64), is("a", 64)),
                (2, 3, Get, Answer::NotFound),
            ],
            vec![(0, 1, Get, is("a", 64)), (2, 3, Create(64), is("a", 64))],
            // Two successful deletes of one object, and a stale read.
            vec![
                (0, 1, Create(64), is("a", 64)),
                (2, 9, Delete, Answer::Deleted),
                (3, 8, Delete, Answer::Deleted),
            ],
            vec![
                (0, 1, Create(64), is("a", 64)),
                (2, 3, Update(128), is("a", 128)),
                (4, 5, Get, is("a", 64)),
            ],
            // Two clients that each created the object, and a deleted object that reappears.
            vec![
                (0, 9, Create(64), is("a", 64)),
                (1, 8, Create(64), is("b", 64)),
            ],
            vec![
                (0, 1, Create(64), is("a", 64)),
                (2, 3, Delete, Answer::Deleted),
                (4, 5, Create(64), is("b", 64)),
                (6, 7, Get, is("a", 64)),
            ],
        ] {
            assert!(explain(&records(&bad)).is_err(), "{bad:?}");
        }
    }
}
