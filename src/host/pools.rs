//! `msys.threadpool`'s part: options in and statistics out through serde.

use mlua::{Function, Lua, LuaSerdeExt, Result, Table, Value};

use crate::{
    pool::{Options, Pool},
    registry,
    vm::Vm,
};

/// What the functions below need of the VM. It outlives them: they are in its Lua state.
#[derive(Clone, Copy)]
struct Owner(*const Vm);

impl Owner {
    fn vm(&self) -> &Vm {
        // SAFETY: a host's VM is freed when its state closes, after which no function of that state is called by the
        // face (it asks `is_closed` functions of the C kind first); a worker's outlives its state.
        unsafe { &*self.0 }
    }
}

/// mlua says what serde said behind a prefix of its own.
fn words(error: &mlua::Error) -> String {
    let text = error.to_string();
    text.strip_prefix("deserialize error: ").unwrap_or(&text).replace('`', "'")
}

/// Adds the functions to the module's table.
///
/// # Errors
/// LuaJIT's memory ran out.
pub(super) fn add(lua: &Lua, table: &Table, vm: *const Vm) -> Result<()> {
    let owner = Owner(vm);
    let functions: [(&str, Function); 9] = [
        // (options) → id, or nil, text. What `pack` has kept becomes the pool's init.
        ("create", lua.create_function(move |lua, options: Value| Ok(create(lua, owner.vm(), options)))?),
        // (name or id) → id, name, or nothing
        ("find", lua.create_function(|_, given: Value| Ok(find(&given)))?),
        ("known", lua.create_function(|_, ()| Ok(registry::known_names()))?),
        ("count", lua.create_function(|_, ()| Ok(registry::all().iter().filter(|p| p.is_running()).count()))?),
        ("stat", lua.create_function(|lua, id: u32| registry::by_id(id).map(|p| lua.to_value(&p.stat())).transpose())?),
        ("resize", lua.create_function(|_, (id, size): (u32, f64)| Ok(resize(id, size)))?),
        ("shutdown", lua.create_function(|_, (id, drop): (u32, bool)| {
            registry::by_id(id).inspect(|pool| pool.shutdown(drop));
            Ok(())
        })?),
        ("await_end", lua.create_function(move |_, (id, ticket): (u32, f64)| {
            registry::by_id(id).inspect(|pool| pool.await_end(owner.vm().inbox(), ticket as u64));
            Ok(())
        })?),
        ("handle", handle(lua)?),
    ];
    for (name, function) in functions {
        table.raw_set(name, function)?;
    }
    Ok(())
}

fn create(lua: &Lua, vm: &Vm, options: Value) -> (Option<u32>, Option<String>) {
    let init = vm.packed.borrow_mut().take();
    let created = lua
        .from_value::<Options>(options)
        .map_err(|error| words(&error))
        .and_then(|options| options.check(init, vm.paths.get()).map_err(|error| error.to_string()))
        .and_then(|config| registry::create(config).map_err(|error| error.to_string()));
    match created {
        Ok(pool) => (Some(pool.id), None),
        Err(text) => (None, Some(text)),
    }
}

fn find(given: &Value) -> (Option<u32>, Option<String>) {
    let pool = match given {
        Value::String(name) => name.to_str().ok().and_then(|name| registry::by_name(&name)),
        Value::Integer(id) => u32::try_from(*id).ok().and_then(registry::by_id),
        Value::Number(id) if id.fract() == 0.0 && *id >= 0.0 => registry::by_id(*id as u32),
        _ => None,
    };
    let named = |pool: std::sync::Arc<Pool>| (Some(pool.id), Some(pool.config.name.to_string()));
    pool.map_or((None, None), named)
}

fn resize(id: u32, size: f64) -> (Option<bool>, Option<String>) {
    match registry::check_concurrency(size) {
        Ok(size) => {
            registry::by_id(id).inspect(|pool| pool.resize(size));
            (Some(true), None)
        }
        Err(error) => (None, Some(error.to_string())),
    }
}

/// `handle(id)` → the handle object of a pool; `handle(object)` → its id, or nil
fn handle(lua: &Lua) -> Result<Function> {
    lua.create_function(|lua, given: Value| {
        // SAFETY: protected by mlua; one argument in, one result out, as the two functions promise.
        unsafe {
            lua.exec_raw::<Value>(given, |state| {
                use crate::luajit::ffi;
                if ffi::lua_type(state, -1) == ffi::LUA_TNUMBER {
                    let id = ffi::lua_tonumber(state, -1) as u32;
                    super::push_pool(state, id);
                } else {
                    match super::pool_of(state, -1) {
                        Some(id) => ffi::lua_pushnumber(state, f64::from(id)),
                        None => ffi::lua_pushnil(state),
                    }
                }
                ffi::lua_remove(state, -2);
            })
        }
    })
}
