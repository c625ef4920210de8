//! UTF-8 to atoms. New ones are made only within a budget.
//!
//! BEAM never frees an atom and dies when its table is full, so bytes from outside must not name
//! new ones without end. The NIF API makes atoms of Latin-1 (of UTF-8 only since OTP 26); names
//! beyond that go through the external term format, on every OTP.

use super::build::{self, New};
use super::error::DecodeError;
use super::external::External;
use rustler::sys::ErlNifTerm;
use rustler::{Env, Term};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// How many new atoms decoding may make in the life of the VM.
const NEW_ATOMS: u64 = 10_000;

/// More characters than that make no atom.
const MAX_CHARACTERS: usize = 255;

static ATOMS_LEFT: AtomicU64 = AtomicU64::new(NEW_ATOMS);

/// What [`admit_fun`] has admitted. Atoms stay what they are, so they can be kept.
static ADMITTED_FUNS: Mutex<BTreeSet<(ErlNifTerm, ErlNifTerm, u8)>> = Mutex::new(BTreeSet::new());

/// How many new atoms decoding may still make. Atoms that exist are free.
pub(crate) fn atoms_left() -> u64 {
    ATOMS_LEFT.load(Ordering::Relaxed)
}

/// Admits `fun M:F/A` of a function that no code has named so far: the VM keeps a place for it for
/// ever, as for an atom, and so it takes one from the same budget. Once only: until the next module
/// is loaded, the VM itself does not find that place again.
pub(super) fn admit_fun(
    module: Term<'_>,
    function: Term<'_>,
    arity: u8,
) -> Result<(), DecodeError> {
    let fun = (module.as_c_arg(), function.as_c_arg(), arity);
    let mut admitted = ADMITTED_FUNS.lock().unwrap_or_else(PoisonError::into_inner);
    if !admitted.contains(&fun) {
        take_from_budget()?;
        admitted.insert(fun);
    }
    Ok(())
}

fn take_from_budget() -> Result<(), DecodeError> {
    ATOMS_LEFT
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        })
        .map(drop)
        .map_err(|_| DecodeError::AtomBudget)
}

/// The atom of that name, which must be UTF-8.
pub(crate) fn make_atom<'a>(env: Env<'a>, name: &[u8]) -> Result<Term<'a>, DecodeError> {
    if name.is_ascii() {
        if name.len() > MAX_CHARACTERS {
            return Err(DecodeError::AtomTooLong);
        }
        return make_latin1(env, name);
    }
    let name = std::str::from_utf8(name).map_err(|_| DecodeError::AtomNotUtf8)?;
    make_beyond_ascii(env, name)
}

#[cold]
#[inline(never)]
fn make_beyond_ascii<'a>(env: Env<'a>, name: &str) -> Result<Term<'a>, DecodeError> {
    if name.chars().nth(MAX_CHARACTERS).is_some() {
        return Err(DecodeError::AtomTooLong);
    }
    let latin1: Option<Vec<u8>> = name.chars().map(|c| u8::try_from(c).ok()).collect();
    match latin1 {
        Some(name) => make_latin1(env, &name),
        None => {
            let bytes = External::Atom(Cow::Borrowed(name)).to_bytes();
            if let Some(atom) = build::from_external(env, &bytes, New::Refused) {
                return Ok(atom);
            }
            take_from_budget()?;
            build::from_external(env, &bytes, New::Allowed).ok_or(DecodeError::AtomNotUtf8)
        }
    }
}

/// Maps of one kind name the same few atoms over and over; the VM's own table is behind a lock.
const REMEMBERED: usize = 256;

/// A name and the atom of it.
type Named = (Box<[u8]>, Option<ErlNifTerm>);

thread_local! {
    /// The atoms last asked for, each at the place of its name's hash. The VM never frees an atom.
    static ATOMS: RefCell<Vec<Named>> = const { RefCell::new(Vec::new()) };
}

fn place(name: &[u8]) -> usize {
    let hash = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> 32) as usize % REMEMBERED
}

fn make_latin1<'a>(env: Env<'a>, name: &[u8]) -> Result<Term<'a>, DecodeError> {
    ATOMS.with_borrow_mut(|atoms| {
        if atoms.is_empty() {
            atoms.resize(REMEMBERED, (Box::default(), None));
        }
        let (known, atom) = &mut atoms[place(name)];
        let raw = match *atom {
            Some(raw) if **known == *name => raw,
            _ => {
                let raw = ask_for_latin1(env, name)?.as_c_arg();
                (*known, *atom) = (name.into(), Some(raw));
                raw
            }
        };
        // SAFETY: atoms belong to every environment.
        Ok(unsafe { Term::new(env, raw) })
    })
}

fn ask_for_latin1<'a>(env: Env<'a>, name: &[u8]) -> Result<Term<'a>, DecodeError> {
    if let Some(atom) = build::existing_atom(env, name) {
        return Ok(atom);
    }
    take_from_budget()?;
    Ok(build::new_atom(env, name))
}
