//! The codec as functions of its own, so that values can be read and written by hand.
//!
//! Each comes twice: for a scheduler, where it refuses what would take long, and for a dirty one.

use crate::codec::{self, EncodeError};
use rustler::{Atom, Binary, Encoder, Env, NewBinary, Term};

mod atoms {
    rustler::atoms! {
        ok,
        error,
        over_budget,
        unencodable,
    }
}

/// How large an encoding a scheduler may write, in bytes.
const SCHEDULER_ENCODE: usize = 32 * 1024;

/// How large an encoding a scheduler may read, in bytes; a term may take as little as one.
const SCHEDULER_DECODE: usize = 4 * 1024;

#[rustler::nif]
fn encode<'a>(env: Env<'a>, term: Term<'a>) -> Term<'a> {
    encode_within(env, term, SCHEDULER_ENCODE)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn encode_dirty<'a>(env: Env<'a>, term: Term<'a>) -> Term<'a> {
    encode_within(env, term, codec::MAX_BYTES)
}

#[rustler::nif]
fn decode<'a>(env: Env<'a>, bytes: Binary<'a>) -> Term<'a> {
    if bytes.len() > SCHEDULER_DECODE {
        return atoms::over_budget().to_term(env);
    }
    decode_all(env, &bytes)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn decode_dirty<'a>(env: Env<'a>, bytes: Binary<'a>) -> Term<'a> {
    decode_all(env, &bytes)
}

#[rustler::nif]
fn new_atoms_left() -> u64 {
    codec::atoms_left()
}

/// `{ok, Binary} | over_budget | {error, {unencodable, What, Path}}`
fn encode_within<'a>(env: Env<'a>, term: Term<'a>, budget: usize) -> Term<'a> {
    match codec::encode(term, budget) {
        Ok(bytes) => (atoms::ok(), binary(env, &bytes)).encode(env),
        Err(EncodeError::OverBudget) => atoms::over_budget().to_term(env),
        Err(EncodeError::Unencodable { what, path }) => {
            let what = binary(env, what.as_bytes());
            let path = binary(env, path.as_bytes());
            (atoms::error(), (atoms::unencodable(), what, path)).encode(env)
        }
    }
}

/// `{ok, Term} | {error, Reason}`, the reason being an atom.
fn decode_all<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    match codec::decode(env, bytes) {
        Ok(term) => (atoms::ok(), term).encode(env),
        Err(error) => {
            let reason = Atom::from_str(env, error.name()).unwrap_or_else(|_| atoms::error());
            (atoms::error(), reason).encode(env)
        }
    }
}

fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    let mut binary = NewBinary::new(env, bytes.len());
    binary.copy_from_slice(bytes);
    binary.into()
}
