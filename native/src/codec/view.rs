//! Terms as Rust values: the calls into the VM that reading a term takes, each as a safe function.
//!
//! Rustler's own wrappers copy where these do not, or lack what is here.

use rustler::sys::{self, ErlNifTerm, ErlNifTermType};
use rustler::{OwnedBinary, Term};
use std::ffi::{c_char, c_uint};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// The kinds of terms that the codec tells apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Atom,
    Bitstring,
    Float,
    Fun,
    Integer,
    List,
    Map,
    Pid,
    Port,
    Reference,
    Tuple,
    /// A kind that a later OTP brought.
    Other,
}

#[inline]
pub(super) fn kind(term: Term<'_>) -> Kind {
    const ATOM: i32 = ErlNifTermType::ERL_NIF_TERM_TYPE_ATOM as i32;
    const BITSTRING: i32 = ErlNifTermType::ERL_NIF_TERM_TYPE_BITSTRING as i32;
    const FLOAT: i32 = ErlNifTermType::ERL_NIF_TERM_TYPE_FLOAT as i32;
    const FUN: i32 = ErlNifTermType::ERL_NIF_TERM_TYPE_FUN as i32;
    const INTEGER: i32 = ErlNifTermType::ERL_NIF_TERM_TYPE_INTEGER as i32;
    const LIST: i32 = ErlNifTermType::ERL_NIF_TERM_TYPE_LIST as i32;
    const MAP: i32 = ErlNifTermType::ERL_NIF_TERM_TYPE_MAP as i32;
    const PID: i32 = ErlNifTermType::ERL_NIF_TERM_TYPE_PID as i32;
    const PORT: i32 = ErlNifTermType::ERL_NIF_TERM_TYPE_PORT as i32;
    const REFERENCE: i32 = ErlNifTermType::ERL_NIF_TERM_TYPE_REFERENCE as i32;
    const TUPLE: i32 = ErlNifTermType::ERL_NIF_TERM_TYPE_TUPLE as i32;

    type TermType = unsafe extern "C" fn(*mut sys::ErlNifEnv, ErlNifTerm) -> ErlNifTermType;
    type RawTermType = unsafe extern "C" fn(*mut sys::ErlNifEnv, ErlNifTerm) -> i32;
    // SAFETY: the C function returns an int. A VM may return one that this enum does not have,
    // which must not become a value of it.
    let term_type = unsafe { std::mem::transmute::<TermType, RawTermType>(sys::enif_term_type) };
    // SAFETY: the term belongs to its environment.
    match unsafe { term_type(term.get_env().as_c_arg(), term.as_c_arg()) } {
        ATOM => Kind::Atom,
        BITSTRING => Kind::Bitstring,
        FLOAT => Kind::Float,
        FUN => Kind::Fun,
        INTEGER => Kind::Integer,
        LIST => Kind::List,
        MAP => Kind::Map,
        PID => Kind::Pid,
        PORT => Kind::Port,
        REFERENCE => Kind::Reference,
        TUPLE => Kind::Tuple,
        _ => Kind::Other,
    }
}

/// An integer that 64 bits hold.
pub(super) enum Int {
    Signed(i64),
    Unsigned(u64),
}

/// The integer, unless it is a bignum of more than 64 bits.
#[inline]
pub(super) fn int(term: Term<'_>) -> Option<Int> {
    let env = term.get_env().as_c_arg();
    let mut signed = 0;
    let mut unsigned = 0;
    // SAFETY: the term belongs to its environment, the results are only written to.
    unsafe {
        if sys::enif_get_int64(env, term.as_c_arg(), &mut signed) != 0 {
            Some(Int::Signed(signed))
        } else if sys::enif_get_uint64(env, term.as_c_arg(), &mut unsigned) != 0 {
            Some(Int::Unsigned(unsigned))
        } else {
            None
        }
    }
}

#[inline]
pub(super) fn float(term: Term<'_>) -> Option<f64> {
    let mut value = 0.0;
    // SAFETY: the term belongs to its environment, the result is only written to.
    let found =
        unsafe { sys::enif_get_double(term.get_env().as_c_arg(), term.as_c_arg(), &mut value) };
    (found != 0).then_some(value)
}

/// The bytes of a binary, where they are. `None` for a bitstring that is no binary.
#[inline]
pub(super) fn bytes<'a>(term: Term<'a>) -> Option<&'a [u8]> {
    let mut binary = MaybeUninit::uninit();
    // SAFETY: the term belongs to its environment. Where the call says that it is a binary, it has
    // filled in the result, whose bytes live as long as the term and never change.
    unsafe {
        let env = term.get_env().as_c_arg();
        if sys::enif_inspect_binary(env, term.as_c_arg(), binary.as_mut_ptr()) == 0 {
            return None;
        }
        let binary: sys::ErlNifBinary = binary.assume_init();
        if binary.size == 0 {
            return Some(&[]);
        }
        Some(std::slice::from_raw_parts(binary.data, binary.size))
    }
}

/// The first element of a list and what follows it.
#[inline]
pub(super) fn list_cell<'a>(term: Term<'a>) -> Option<(Term<'a>, Term<'a>)> {
    let env = term.get_env();
    let mut head = MaybeUninit::uninit();
    let mut tail = MaybeUninit::uninit();
    // SAFETY: the term belongs to its environment, and so do the parts, which are there if the
    // call says so.
    unsafe {
        let found = sys::enif_get_list_cell(
            env.as_c_arg(),
            term.as_c_arg(),
            head.as_mut_ptr(),
            tail.as_mut_ptr(),
        );
        (found != 0).then(|| {
            (
                Term::new(env, head.assume_init()),
                Term::new(env, tail.assume_init()),
            )
        })
    }
}

/// The elements of a tuple.
#[inline]
pub(super) fn tuple<'a>(term: Term<'a>) -> Option<impl ExactSizeIterator<Item = Term<'a>>> {
    let env = term.get_env();
    let mut arity = 0;
    let mut elements = std::ptr::null();
    // SAFETY: the term belongs to its environment.
    let found =
        unsafe { sys::enif_get_tuple(env.as_c_arg(), term.as_c_arg(), &mut arity, &mut elements) };
    if found == 0 {
        return None;
    }
    let elements: &'a [ErlNifTerm] = match usize::try_from(arity) {
        // SAFETY: it is a tuple of that many elements, which live as long as it.
        Ok(arity @ 1..) => unsafe { std::slice::from_raw_parts(elements, arity) },
        _ => &[],
    };
    // SAFETY: the elements belong to the environment of the tuple.
    Some(
        elements
            .iter()
            .map(move |&raw| unsafe { Term::new(env, raw) }),
    )
}

/// How many pairs a map has.
#[inline]
pub(super) fn map_size(term: Term<'_>) -> Option<usize> {
    let mut size = 0;
    // SAFETY: the term belongs to its environment, the result is only written to.
    let found =
        unsafe { sys::enif_get_map_size(term.get_env().as_c_arg(), term.as_c_arg(), &mut size) };
    (found != 0).then_some(size)
}

/// The pairs of a map, in the VM's order.
pub(super) struct MapPairs<'a> {
    map: Term<'a>,
    iterator: sys::ErlNifMapIterator,
    /// The iterator keeps pointers into the map.
    borrowed: PhantomData<&'a ()>,
}

#[inline]
pub(super) fn map_pairs<'a>(map: Term<'a>) -> Option<MapPairs<'a>> {
    let mut iterator = MaybeUninit::uninit();
    // SAFETY: the term belongs to its environment. Where the call says that it is a map, it has
    // filled in the iterator.
    unsafe {
        let created = sys::enif_map_iterator_create(
            map.get_env().as_c_arg(),
            map.as_c_arg(),
            iterator.as_mut_ptr(),
            sys::ErlNifMapIteratorEntry::ERL_NIF_MAP_ITERATOR_HEAD,
        );
        (created != 0).then(|| MapPairs {
            map,
            iterator: iterator.assume_init(),
            borrowed: PhantomData,
        })
    }
}

impl<'a> Iterator for MapPairs<'a> {
    type Item = (Term<'a>, Term<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let env = self.map.get_env();
        let mut key = MaybeUninit::uninit();
        let mut value = MaybeUninit::uninit();
        // SAFETY: the iterator was created on this map; the key and the value are there if the
        // call says so, and belong to the map's environment.
        unsafe {
            let found = sys::enif_map_iterator_get_pair(
                env.as_c_arg(),
                &mut self.iterator,
                key.as_mut_ptr(),
                value.as_mut_ptr(),
            );
            if found == 0 {
                return None;
            }
            sys::enif_map_iterator_next(env.as_c_arg(), &mut self.iterator);
            Some((
                Term::new(env, key.assume_init()),
                Term::new(env, value.assume_init()),
            ))
        }
    }
}

impl Drop for MapPairs<'_> {
    fn drop(&mut self) {
        // SAFETY: the iterator was created, and is destroyed only here.
        unsafe {
            sys::enif_map_iterator_destroy(self.map.get_env().as_c_arg(), &mut self.iterator);
        }
    }
}

/// Room for the name of an atom in Latin-1, and the NUL that the VM writes after it.
pub(super) type AtomBuffer = MaybeUninit<[u8; 256]>;

/// The name of an atom in Latin-1. `None` for an atom that has other characters too.
#[inline]
pub(super) fn atom_latin1<'b>(term: Term<'_>, buffer: &'b mut AtomBuffer) -> Option<&'b [u8]> {
    let name = buffer.as_mut_ptr().cast::<u8>();
    // SAFETY: the term belongs to its environment. The VM writes no more bytes than there is room
    // for, and says how many it has written.
    unsafe {
        let written = sys::enif_get_atom(
            term.get_env().as_c_arg(),
            term.as_c_arg(),
            name.cast::<c_char>(),
            size_of::<AtomBuffer>() as c_uint,
            sys::ErlNifCharEncoding::ERL_NIF_LATIN1,
        );
        let length = usize::try_from(written).ok()?.checked_sub(1)?;
        Some(std::slice::from_raw_parts(name, length))
    }
}

/// The term in the external term format. Takes time in proportion to the term.
pub(super) fn external(term: Term<'_>) -> Option<OwnedBinary> {
    let mut binary = MaybeUninit::uninit();
    // SAFETY: the term belongs to its environment. The binary is filled in if the call says so,
    // and then it is ours.
    unsafe {
        let env = term.get_env().as_c_arg();
        let done = sys::enif_term_to_binary(env, term.as_c_arg(), binary.as_mut_ptr());
        (done != 0).then(|| OwnedBinary::from_raw(binary.assume_init()))
    }
}

/// Whether a fun is `fun M:F/A`. The VM prints it so, and any other as `#Fun<..>`: asking that way
/// does not copy the fun's environment, of which there may be megabytes.
pub(super) fn is_external_fun(fun: Term<'_>) -> bool {
    let mut text = [0_u8; 8];
    // SAFETY: the VM writes no more than the length says, and `%T` takes a term.
    unsafe {
        sys::get_enif_snprintf()(
            text.as_mut_ptr().cast::<c_char>(),
            text.len(),
            c"%T".as_ptr(),
            fun.as_c_arg(),
        );
    }
    text[0] != b'#'
}
