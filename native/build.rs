//! Links the library so that `dlclose` never unmaps it: Rustler sets no `unload` callback, and a
//! thread of the Tokio runtime may still be in its last instructions when the module is purged.
fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
