//! Threads for LuaJIT that feel like a function call: the native half of the rock `msys`.
//!
//! A job's way through the files, the protocols and their proofs are in `ARCHITECTURE.md`; what users may rely on is in
//! the README and the Lua modules' documentation. Nothing here is an API of its own: `msys.native` is private to the
//! Lua face.
//!
//! The layers go one way: a file uses only what stands above it in this list (`tests/layers.rs` checks it).

/// Declares modules that loom's models have no part in: they wait on files and run VMs.
macro_rules! without_loom {
    ($($name:ident)*) => { $(#[cfg(not(loom))] pub mod $name;)* };
}

pub(crate) mod sync;
pub mod lease;
without_loom! { luajit layout memory error bytecode usage code wire outcome }
pub mod waker;
pub mod mailbox;
pub mod sleep;
pub mod locks;
without_loom! { gate signals timer job reaper handles pool registry }
without_loom! { origin functions encode decode changes trace interrupt isolate vm host face worker }

/// The module `msys.native`, for the Lua state that requires it.
///
/// # Errors
/// LuaJIT's memory or the process's file descriptors ran out.
#[cfg(all(feature = "module", not(loom)))]
#[mlua::lua_module(name = "msys_native")]
fn native(lua: &mlua::Lua) -> mlua::Result<mlua::Table> {
    worker::prepare();
    host::open_host(lua, worker::run)
}
