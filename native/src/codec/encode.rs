//! From a term to MessagePack.

use super::error::EncodeError;
use super::external::External;
use super::view::{self, AtomBuffer, Int, Kind};
use super::writer::Writer;
use super::{payload, EXT_IMPROPER_LIST, EXT_TUPLE, MAX_BYTES, MAX_DEPTH, MAX_KEY_DEPTH};
use rustler::types::atom::{false_, true_, undefined};
use rustler::{sys::ErlNifTerm, Term};

/// A budget up to this one is taken for that of a call on a scheduler, which must be short.
const SCHEDULER_BUDGET: usize = 256 * 1024;

/// On a scheduler, an element is charged as that many bytes: it takes some ten nanoseconds however
/// short its encoding is.
const BYTES_PER_ELEMENT: usize = 8;

/// What an element costs, in elements, for which the VM has to write its external form.
const EXTERNAL_COST: usize = 8;

/// The path to what cannot be encoded is told up to that many steps.
const PATH_STEPS: usize = 16;

/// Encodes a term in at most `budget` bytes (and never in more than [`MAX_BYTES`]).
///
/// A budget of up to 256 KiB bounds the time as well: the term may then have an element for each
/// eight bytes of it, and bitstrings and bignums, whose size cannot be told before they are copied,
/// are over the budget. So encode on a scheduler with some 32 KiB, which takes well under a
/// millisecond for any term, and what is over that on a dirty scheduler.
pub(crate) fn encode(term: Term<'_>, budget: usize) -> Result<Vec<u8>, EncodeError> {
    let budget = budget.min(MAX_BYTES);
    let on_scheduler = budget <= SCHEDULER_BUDGET;
    let mut encoder = Encoder {
        out: Writer::with_capacity(budget.min(1024)),
        budget,
        elements_left: if on_scheduler {
            (budget / BYTES_PER_ELEMENT).max(1)
        } else {
            budget
        },
        on_scheduler,
        key_depth: 0,
        known: KnownAtoms {
            true_: true_().as_c_arg(),
            false_: false_().as_c_arg(),
            undefined: undefined().as_c_arg(),
        },
        path: Vec::new(),
    };
    let done = encoder.term(term, 0).and_then(|()| encoder.charge(0));
    match done {
        Ok(()) => Ok(encoder.out.finish()),
        Err(Stop::OverBudget) => Err(EncodeError::OverBudget),
        Err(Stop::Unencodable(what)) => {
            let mut path: String = encoder
                .path
                .iter()
                .rev()
                .take(PATH_STEPS)
                .cloned()
                .collect();
            if encoder.path.len() > PATH_STEPS {
                path.push_str("...");
            }
            Err(EncodeError::Unencodable { what, path })
        }
    }
}

/// Why the walk through the term ends early.
enum Stop {
    OverBudget,
    Unencodable(&'static str),
}

/// The atoms that are no strings in MessagePack.
struct KnownAtoms {
    true_: ErlNifTerm,
    false_: ErlNifTerm,
    undefined: ErlNifTerm,
}

struct Encoder {
    out: Writer,
    budget: usize,
    elements_left: usize,
    on_scheduler: bool,
    /// How many map keys we are in.
    key_depth: u32,
    known: KnownAtoms,
    /// Where the term is that cannot be encoded, from the inside out.
    path: Vec<String>,
}

impl Encoder {
    /// Writes a term that is in `depth` containers.
    fn term(&mut self, term: Term<'_>, depth: u32) -> Result<(), Stop> {
        self.charge(1)?;
        match view::kind(term) {
            Kind::Atom => self.atom(term),
            Kind::Integer => match view::int(term) {
                Some(Int::Signed(n)) => {
                    self.out.int(n);
                    Ok(())
                }
                Some(Int::Unsigned(n)) => {
                    self.out.uint(n);
                    Ok(())
                }
                None => self.unsized_external(term),
            },
            Kind::Bitstring => match view::bytes(term) {
                Some(bytes) => {
                    self.reserve(bytes.len())?;
                    self.out.bin(bytes);
                    Ok(())
                }
                None => self.unsized_external(term),
            },
            Kind::Float => {
                let x = view::float(term).ok_or(Stop::Unencodable("a float"))?;
                self.out.float(x);
                Ok(())
            }
            Kind::List => self.list(term, depth + 1),
            Kind::Tuple => self.tuple(term, depth + 1),
            Kind::Map => self.map(term, depth + 1),
            Kind::Pid | Kind::Reference => self.external(term),
            Kind::Fun if view::is_external_fun(term) => self.external(term),
            Kind::Fun => Err(Stop::Unencodable("a local fun")),
            Kind::Port => Err(Stop::Unencodable("a port")),
            Kind::Other => Err(Stop::Unencodable("a term of an unknown type")),
        }
    }

    /// Takes `n` elements from the budget, and checks that what was written is within it.
    #[inline]
    fn charge(&mut self, n: usize) -> Result<(), Stop> {
        if self.out.len() > self.budget {
            return Err(Stop::OverBudget);
        }
        self.elements_left = self.elements_left.checked_sub(n).ok_or(Stop::OverBudget)?;
        Ok(())
    }

    /// Checks that there is room for that many bytes.
    #[inline]
    fn reserve(&self, bytes: usize) -> Result<(), Stop> {
        if bytes > self.budget.saturating_sub(self.out.len()) {
            return Err(Stop::OverBudget);
        }
        Ok(())
    }

    #[inline]
    fn atom(&mut self, term: Term<'_>) -> Result<(), Stop> {
        let raw = term.as_c_arg();
        if raw == self.known.undefined {
            self.out.nil();
        } else if raw == self.known.true_ {
            self.out.bool(true);
        } else if raw == self.known.false_ {
            self.out.bool(false);
        } else {
            return self.named_atom(term);
        }
        Ok(())
    }

    #[inline(never)]
    fn named_atom(&mut self, term: Term<'_>) -> Result<(), Stop> {
        let mut buffer = AtomBuffer::uninit();
        match view::atom_latin1(term, &mut buffer) {
            Some(name) if name.is_ascii() => self.out.str(name),
            Some(name) => {
                let name: String = name.iter().map(|&byte| char::from(byte)).collect();
                self.out.str(name.as_bytes());
            }
            None => self.external(term)?,
        }
        Ok(())
    }

    /// A term for whose size there is no bound before it is copied.
    #[cold]
    fn unsized_external(&mut self, term: Term<'_>) -> Result<(), Stop> {
        if self.on_scheduler {
            return Err(Stop::OverBudget);
        }
        self.external(term)
    }

    #[inline(never)]
    fn external(&mut self, term: Term<'_>) -> Result<(), Stop> {
        const UNKNOWN: Stop = Stop::Unencodable("a term that the VM writes in an unknown way");
        self.charge(EXTERNAL_COST)?;
        let bytes = view::external(term).ok_or(UNKNOWN)?;
        self.reserve(bytes.len() / 2)?;
        let term = External::parse(&bytes).ok_or(UNKNOWN)?;
        payload::write(&mut self.out, &term);
        Ok(())
    }

    #[inline(never)]
    fn list(&mut self, list: Term<'_>, depth: u32) -> Result<(), Stop> {
        check_depth(depth)?;
        // The head of a proper list tells its length, so the cells are counted first.
        let room = self.elements_left.min(self.budget);
        let mut length = 0;
        let mut rest = list;
        while let Some((_, tail)) = view::list_cell(rest) {
            length += 1;
            rest = tail;
            if length > room {
                return Err(Stop::OverBudget);
            }
        }
        if view::kind(rest) == Kind::List {
            self.out.array(length as u32);
            self.elements(list, depth)
        } else {
            let ext = self.out.open_ext(EXT_IMPROPER_LIST);
            self.out.array(length as u32 + 1);
            self.elements(list, depth)?;
            self.term(rest, depth)
                .map_err(|stop| self.at(stop, || "[tail]".to_owned()))?;
            self.out.close_ext(ext);
            Ok(())
        }
    }

    fn elements(&mut self, list: Term<'_>, depth: u32) -> Result<(), Stop> {
        let mut index = 0_usize;
        let mut rest = list;
        while let Some((element, tail)) = view::list_cell(rest) {
            index += 1;
            rest = tail;
            self.term(element, depth)
                .map_err(|stop| self.at(stop, || format!("[{index}]")))?;
        }
        Ok(())
    }

    #[inline(never)]
    fn tuple(&mut self, tuple: Term<'_>, depth: u32) -> Result<(), Stop> {
        check_depth(depth)?;
        let elements = view::tuple(tuple).ok_or(Stop::Unencodable("a tuple"))?;
        let ext = self.out.open_ext(EXT_TUPLE);
        self.out.array(elements.len() as u32);
        for (index, element) in elements.enumerate() {
            self.term(element, depth)
                .map_err(|stop| self.at(stop, || format!("{{{}}}", index + 1)))?;
        }
        self.out.close_ext(ext);
        Ok(())
    }

    #[inline(never)]
    fn map(&mut self, map: Term<'_>, depth: u32) -> Result<(), Stop> {
        check_depth(depth)?;
        let size = view::map_size(map).ok_or(Stop::Unencodable("a map"))?;
        if size > self.elements_left {
            return Err(Stop::OverBudget);
        }
        self.out.map(size as u32);
        let pairs = view::map_pairs(map).ok_or(Stop::Unencodable("a map"))?;
        for (key, value) in pairs {
            self.key(key, depth)?;
            self.term(value, depth)
                .map_err(|stop| self.at(stop, || value_step(key)))?;
        }
        Ok(())
    }

    #[inline]
    fn key(&mut self, key: Term<'_>, depth: u32) -> Result<(), Stop> {
        if self.key_depth == MAX_KEY_DEPTH {
            return Err(Stop::Unencodable("a map with maps in its keys, too deep"));
        }
        self.key_depth += 1;
        self.term(key, depth)
            .map_err(|stop| self.at(stop, || "[key]".to_owned()))?;
        self.key_depth -= 1;
        Ok(())
    }

    #[cold]
    fn at(&mut self, stop: Stop, step: impl FnOnce() -> String) -> Stop {
        if let Stop::Unencodable(_) = stop {
            self.path.push(step());
        }
        stop
    }
}

#[inline]
fn check_depth(depth: u32) -> Result<(), Stop> {
    if depth > MAX_DEPTH {
        return Err(Stop::Unencodable("a term nested too deeply"));
    }
    Ok(())
}

/// A step of the path to a value of a map. Other keys than atoms may be large, or secret.
fn value_step(key: Term<'_>) -> String {
    if view::kind(key) == Kind::Atom {
        format!(".{key:?}")
    } else {
        ".[value]".to_owned()
    }
}
