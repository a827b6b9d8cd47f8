//! Names the shared library, so that programs keep loading the same major version.

fn main() {
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libvalkyrie.so.0");
    }
}
