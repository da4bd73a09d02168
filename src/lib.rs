//! Threads for LuaJIT that feel like a function call: the native half of the rock `msys`.
//!
//! A job's way through the files, the protocols and their proofs are in `ARCHITECTURE.md`; what users may rely on is in
//! the README and the Lua modules' documentation. Nothing here is an API of its own: `msys.native` is private to the
//! Lua face.
//!
//! The layers go one way: a file uses only what stands above it in this list (`tests/layers.rs` checks it).

pub mod luajit;

pub mod error;
pub(crate) mod sync;
pub mod bytecode;
pub mod code;
pub mod wire;
pub mod outcome;

pub mod waker;
pub mod mailbox;
pub mod timer;
pub mod sleep;
pub mod job;
pub mod pool;
pub mod registry;

pub mod functions;
pub mod encode;
pub mod decode;
pub mod vm;
pub mod host;
pub mod worker;

/// The module `msys.native`, for the Lua state that requires it.
///
/// # Errors
/// LuaJIT's memory or the process's file descriptors ran out.
#[cfg(feature = "module")]
#[mlua::lua_module(name = "msys_native")]
fn native(lua: &mlua::Lua) -> mlua::Result<mlua::Table> {
    host::open_host(lua)
}
