//! Links the module so that it is never unloaded: worker threads may still run in it when LuaJIT closes it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
