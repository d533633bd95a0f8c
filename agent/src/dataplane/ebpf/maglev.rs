//! Consistent hashing: which back end each slot of a table leads to.
//!
//! Pure. As in "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4, each back end has an
//! order of slots of its own, and claims one after the other until it has its share. There, they take turns, and a slot is kept
//! by who comes first; here, by who has it earlier in its order, and the other one claims on. That takes no longer, and
//! when one of 100 is lost, 0.7 % of the others' flows move rather than 1.4 %.
//! What comes of it depends on the set of back ends alone, so all nodes have the same table.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::Arc;

use proxyd_ebpf_common as bpf;
use sha2::{Digest as _, Sha256};

/// How many slots tables have: a prime number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSize(u32);

impl TableSize {
    /// If nothing else is said.
    pub const DEFAULT: Self = Self(16_381);

    /// The least; with fewer, some back ends would have a good deal more flows than others.
    const MIN: u32 = 251;

    /// The most: a table then has 256 KiB.
    const MAX: u32 = 131_071;
}

/// Why a number is not the size of a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableSizeError {
    /// It is no number at all.
    #[error(transparent)]
    NoNumber(#[from] ParseIntError),
    /// It is too low or too high.
    #[error(
        "not from {} to {}; {next} is the nearest that can be used",
        TableSize::MIN,
        TableSize::MAX
    )]
    OutOfRange {
        /// What could be used.
        next: u32,
    },
    /// It is not a prime number.
    #[error("not a prime number; the next one is {next}")]
    NoPrime {
        /// The next one.
        next: u32,
    },
}

impl FromStr for TableSize {
    type Err = TableSizeError;

    fn from_str(text: &str) -> Result<Self, TableSizeError> {
        let size: u32 = text.parse()?;
        if !(Self::MIN..=Self::MAX).contains(&size) {
            let next = size.clamp(Self::MIN, Self::MAX);
            return Err(TableSizeError::OutOfRange { next });
        }
        let next = (size..=Self::MAX).find(|number| is_prime(*number));
        let next = next.expect("the most is a prime number");
        if next != size {
            return Err(TableSizeError::NoPrime { next });
        }
        Ok(Self(size))
    }
}

impl fmt::Display for TableSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn is_prime(number: u32) -> bool {
    let divisors = (2..).take_while(|divisor| divisor * divisor <= number);
    number > 1
        && divisors
            .into_iter()
            .all(|divisor| !number.is_multiple_of(divisor))
}

/// A set of back ends in an order that is the same on all nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backends(Arc<[bpf::Destination]>);

impl Backends {
    /// Orders them.
    pub(super) fn new(backends: impl IntoIterator<Item = bpf::Destination>) -> Self {
        let mut backends: Vec<_> = backends.into_iter().collect();
        backends.sort_unstable_by_key(|backend| (backend.address, port(backend)));
        backends.dedup();
        Self(backends.into())
    }

    /// Each of them once.
    pub(super) fn as_slice(&self) -> &[bpf::Destination] {
        &self.0
    }

    /// The name of their table. `None` if they have no use for one: a single one has all flows anyway, and of more than there are
    /// slots some would have none.
    pub(super) fn table(&self, TableSize(size): TableSize) -> Option<bpf::Table> {
        let count = u32::try_from(self.0.len()).ok()?;
        if !(2..=size).contains(&count) {
            return None;
        }
        let mut hash = Sha256::new();
        for backend in self.as_slice() {
            hash.update(backend.address.0);
            hash.update(backend.port.to_ne_bytes());
        }
        let hash = hash.finalize();
        let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|byte| hash[4 * at + byte]));
        // Who makes a set to have the name of another one has to try 2⁹⁶ of them.
        let name = [word(0), word(1), word(2)];
        Some(bpf::Table { name, size })
    }

    /// Which of them each slot of a table leads to. The shares differ by one slot at most.
    ///
    /// # Panics
    /// If there are none, or more than slots.
    pub(super) fn slots(&self, size: u32) -> Vec<u16> {
        let count = u32::try_from(self.0.len()).expect("they are counted by 16 bits");
        assert!((1..=size).contains(&count), "{count} back ends");
        let share = |index: u16| size / count + u32::from(u32::from(index) < size % count);
        let orders = self.0.iter().map(|to| Order::of(to, size));
        let mut orders: Vec<Order> = orders.collect();
        let mut claims = vec![Claim::NONE; size as usize];
        // Whoever claims first: in the end each has what those leave to it that have a slot earlier in their orders.
        let mut claimants: Vec<u16> = (0..).take(orders.len()).collect();
        while let Some(index) = claimants.pop() {
            while orders[usize::from(index)].has < share(index) {
                let (slot, position) = orders[usize::from(index)].next();
                let claim = Claim { position, index };
                if claim < claims[slot] {
                    let lost = std::mem::replace(&mut claims[slot], claim);
                    orders[usize::from(index)].has += 1;
                    if lost != Claim::NONE {
                        orders[usize::from(lost.index)].has -= 1;
                        claimants.push(lost.index);
                    }
                }
            }
        }
        claims.into_iter().map(|claim| claim.index).collect()
    }
}

/// A table in the pieces that the kernel keeps it in.
pub(super) fn pieces(slots: &[u16]) -> impl Iterator<Item = bpf::Piece> {
    slots.chunks(bpf::PIECE_SLOTS as usize).map(|part| {
        let mut piece = bpf::Piece {
            slots: [0; bpf::PIECE_SLOTS as usize],
        };
        piece.slots[..part.len()].copy_from_slice(part);
        piece
    })
}

/// What a back end has to say for a slot: the less, the better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    /// Where the slot is in its order.
    position: u32,
    /// Which back end it is.
    index: u16,
}

impl Claim {
    /// Of nobody.
    const NONE: Self = Self {
        position: u32::MAX,
        index: u16::MAX,
    };
}

/// The order of slots of one back end: from one, in steps of so many. As their number is prime, each is met once.
struct Order {
    slot: u32,
    step: u32,
    position: u32,
    size: u32,
    /// How many slots it has.
    has: u32,
}

impl Order {
    fn of(backend: &bpf::Destination, size: u32) -> Self {
        let hash = |what: u64| {
            bpf::hash_of_address(&backend.address, what << 16 | u64::from(port(backend)))
        };
        let below = |limit: u32, hash: u64| {
            u32::try_from(hash % u64::from(limit)).expect("it is below a number of 32 bits")
        };
        Self {
            slot: below(size, hash(1)),
            step: below(size - 1, hash(2)) + 1,
            position: 0,
            size,
            has: 0,
        }
    }

    /// The next slot, and its position in the order.
    fn next(&mut self) -> (usize, u32) {
        let next = (self.slot as usize, self.position);
        self.position += 1;
        self.slot += self.step;
        if self.slot >= self.size {
            self.slot -= self.size;
        }
        next
    }
}

/// A port as a number, on machines of either byte order.
fn port(backend: &bpf::Destination) -> u16 {
    u16::from_be(backend.port)
}

#[cfg(test)]
mod tests;
