//! Rust values as terms: the calls into the VM that making a term takes.
//!
//! Nothing here needs a scheduler thread, or an environment that is bound to a process.

use super::error::DecodeError;
use rustler::sys::{self, ErlNifTerm};
use rustler::{Binary, Env, Term};
use std::ffi::{c_char, c_uint};
use std::mem::MaybeUninit;

/// Before OTP 27.3, the VM crashes where a map of more pairs is made at once on a thread that is no
/// scheduler (<https://github.com/erlang/otp/issues/8208>).
const UNSORTED_PAIRS: usize = 128;

/// So many pairs of such maps are put one by one. Each leaves some hundred words of garbage behind.
const MAX_PUTS: usize = 16 * 1024;

/// The VM copies shorter binaries anyway.
const SHARED_FROM: usize = 65;

/// A term under construction: a stack, on which a container takes the place of its parts.
pub(super) struct Builder<'a> {
    env: Env<'a>,
    /// Each belongs to `env`.
    terms: Vec<ErlNifTerm>,
    /// The keys of the maps that are not yet closed; they too belong to `env`.
    keys: Vec<ErlNifTerm>,
    on_scheduler: bool,
    puts_left: usize,
    /// What is read, where binaries may be parts of it.
    source: Option<Binary<'a>>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(env: Env<'a>, source: Option<Binary<'a>>) -> Self {
        Self {
            env,
            terms: Vec::new(),
            keys: Vec::new(),
            // SAFETY: may be asked on any thread.
            on_scheduler: unsafe { sys::enif_thread_type() } != sys::ERL_NIF_THR_UNDEFINED,
            puts_left: MAX_PUTS,
            source,
        }
    }

    /// The last term.
    pub(super) fn finish(mut self) -> Option<Term<'a>> {
        let raw = self.terms.pop()?;
        // SAFETY: the terms belong to the environment.
        Some(unsafe { Term::new(self.env, raw) })
    }

    #[inline]
    pub(super) fn int(&mut self, n: i64) {
        // SAFETY: any integer will do.
        let raw = unsafe { sys::enif_make_int64(self.env.as_c_arg(), n) };
        self.terms.push(raw);
    }

    #[inline]
    pub(super) fn uint(&mut self, n: u64) {
        // SAFETY: any integer will do.
        let raw = unsafe { sys::enif_make_uint64(self.env.as_c_arg(), n) };
        self.terms.push(raw);
    }

    /// A float, which must be finite.
    #[inline]
    pub(super) fn float(&mut self, x: f64) {
        debug_assert!(x.is_finite());
        // SAFETY: any finite float will do.
        let raw = unsafe { sys::enif_make_double(self.env.as_c_arg(), x) };
        self.terms.push(raw);
    }

    #[inline]
    pub(super) fn binary(&mut self, bytes: &[u8]) {
        if let Some(part) = self.part_of_source(bytes) {
            self.terms.push(part);
            return;
        }
        let mut raw = MaybeUninit::uninit();
        // SAFETY: the VM returns room for as many bytes as were asked for, and fills in the term.
        // Where there is no memory, it ends itself.
        let raw = unsafe {
            let room =
                sys::enif_make_new_binary(self.env.as_c_arg(), bytes.len(), raw.as_mut_ptr());
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), room, bytes.len());
            raw.assume_init()
        };
        self.terms.push(raw);
    }

    fn part_of_source(&self, bytes: &[u8]) -> Option<ErlNifTerm> {
        let source = self
            .source
            .as_ref()
            .filter(|_| bytes.len() >= SHARED_FROM)?;
        let offset = (bytes.as_ptr() as usize).checked_sub(source.as_ptr() as usize)?;
        let part = source.make_subbinary(offset, bytes.len()).ok()?;
        Some(part.to_term(self.env).as_c_arg())
    }

    /// A term that was made in the same environment.
    #[inline]
    pub(super) fn term(&mut self, term: Term<'a>) {
        self.terms.push(term.as_c_arg());
    }

    /// Makes the last term the key of a map.
    #[inline]
    pub(super) fn key(&mut self) {
        self.keys.extend(self.terms.pop());
    }

    /// Where the last `n` terms begin.
    #[inline]
    fn last(&self, n: usize) -> usize {
        debug_assert!(n <= self.terms.len());
        self.terms.len().saturating_sub(n)
    }

    #[inline]
    fn replace(&mut self, from: usize, raw: ErlNifTerm) {
        self.terms.truncate(from);
        self.terms.push(raw);
    }

    /// The last `n` terms, as a list.
    #[inline]
    pub(super) fn list(&mut self, n: usize) {
        let from = self.last(n);
        let parts = &self.terms[from..];
        // SAFETY: the parts belong to the environment.
        let raw = unsafe {
            sys::enif_make_list_from_array(
                self.env.as_c_arg(),
                parts.as_ptr(),
                parts.len() as c_uint,
            )
        };
        self.replace(from, raw);
    }

    /// The last `n` terms, as a tuple.
    #[inline]
    pub(super) fn tuple(&mut self, n: usize) {
        let from = self.last(n);
        let parts = &self.terms[from..];
        // SAFETY: the parts belong to the environment.
        let raw = unsafe {
            sys::enif_make_tuple_from_array(
                self.env.as_c_arg(),
                parts.as_ptr(),
                parts.len() as c_uint,
            )
        };
        self.replace(from, raw);
    }

    /// The last `n` terms, as an improper list that ends in the last of them. `false` if that
    /// makes none.
    pub(super) fn improper_list(&mut self, n: usize) -> bool {
        let from = self.last(n);
        let Some((&tail, elements)) = self.terms[from..].split_last() else {
            return false;
        };
        let env = self.env.as_c_arg();
        // SAFETY: the parts belong to the environment.
        let raw = unsafe {
            if elements.is_empty() || sys::enif_is_list(env, tail) != 0 {
                return false;
            }
            elements.iter().rev().fold(tail, |rest, &element| {
                sys::enif_make_list_cell(env, element, rest)
            })
        };
        self.replace(from, raw);
        true
    }

    /// The last `n` keys and the last `n` terms, as a map.
    pub(super) fn map(&mut self, n: usize) -> Result<(), DecodeError> {
        let from = self.last(n);
        let keys_from = self.keys.len().saturating_sub(self.terms.len() - from);
        let (keys, values) = (&self.keys[keys_from..], &self.terms[from..]);
        let at_once = if keys.len() <= UNSORTED_PAIRS || self.on_scheduler {
            keys.len()
        } else {
            self.puts_left = self
                .puts_left
                .checked_sub(keys.len())
                .ok_or(DecodeError::NeedsScheduler)?;
            UNSORTED_PAIRS
        };
        let env = self.env.as_c_arg();
        let mut map = MaybeUninit::uninit();
        let mut size = 0;
        // SAFETY: keys and values belong to the environment, and there are as many of each. A map
        // is filled in where a call says so, and it is one that the next call takes.
        let raw = unsafe {
            let (keys_at, values_at) = (keys.as_ptr(), values.as_ptr());
            if sys::enif_make_map_from_arrays(env, keys_at, values_at, at_once, map.as_mut_ptr())
                == 0
            {
                return Err(DecodeError::DuplicateKey);
            }
            let mut raw = map.assume_init();
            for (&key, &value) in keys.iter().zip(values).skip(at_once) {
                if sys::enif_make_map_put(env, raw, key, value, map.as_mut_ptr()) == 0 {
                    return Err(DecodeError::DuplicateKey);
                }
                raw = map.assume_init();
            }
            // The VM refuses equal keys, but only if there are at most 32 pairs
            // (https://github.com/erlang/otp/issues/10975).
            sys::enif_get_map_size(env, raw, &mut size);
            raw
        };
        if size != keys.len() {
            return Err(DecodeError::DuplicateKey);
        }
        self.keys.truncate(keys_from);
        self.replace(from, raw);
        Ok(())
    }
}

/// The atom of that name in Latin-1, if there is one.
#[inline]
pub(super) fn existing_atom<'a>(env: Env<'a>, name: &[u8]) -> Option<Term<'a>> {
    let mut raw = MaybeUninit::uninit();
    // SAFETY: the name is as long as it says. The atom is filled in if the call says so.
    unsafe {
        let found = sys::enif_make_existing_atom_len(
            env.as_c_arg(),
            name.as_ptr().cast::<c_char>(),
            name.len(),
            raw.as_mut_ptr(),
            sys::ErlNifCharEncoding::ERL_NIF_LATIN1,
        );
        (found != 0).then(|| Term::new(env, raw.assume_init()))
    }
}

/// The atom of that name in Latin-1, of at most 255 characters, made if need be.
pub(super) fn new_atom<'a>(env: Env<'a>, name: &[u8]) -> Term<'a> {
    debug_assert!(name.len() <= 255);
    // SAFETY: the name is as long as it says, and short enough for an atom.
    unsafe {
        let raw =
            sys::enif_make_atom_len(env.as_c_arg(), name.as_ptr().cast::<c_char>(), name.len());
        Term::new(env, raw)
    }
}

/// Whether reading the external term format may make new atoms and references to functions.
#[derive(Clone, Copy)]
pub(super) enum New {
    Allowed,
    Refused,
}

/// The term that these bytes in the external term format are.
pub(super) fn from_external<'a>(env: Env<'a>, bytes: &[u8], new: New) -> Option<Term<'a>> {
    let options = match new {
        New::Allowed => 0,
        New::Refused => sys::ERL_NIF_BIN2TERM_SAFE,
    };
    let mut raw = MaybeUninit::uninit();
    // SAFETY: the bytes are as many as they say; the VM checks them as it reads. The term is
    // filled in if the call says that it read any.
    unsafe {
        let read = sys::enif_binary_to_term(
            env.as_c_arg(),
            bytes.as_ptr(),
            bytes.len(),
            raw.as_mut_ptr(),
            options,
        );
        (read == bytes.len()).then(|| Term::new(env, raw.assume_init()))
    }
}
