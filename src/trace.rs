//! Whether a VM is in compiled code just now, which LuaJIT tells nobody.
//!
//! Called by `interrupt`. While compiled code runs, or C that it has called, a VM notes where its part of the stack
//! begins, in a word that is null at other times, at the same distance from each VM's main state. That is found by
//! watching a VM at work, in its allocator: the one word that is null while the interpreter runs, and always the same
//! address while a compiled loop does.

use std::{
    ffi::{CStr, c_void},
    ptr::null_mut,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::luajit::{ffi, lua_State};

/// The state, and what stands with it in one block: its first part has the word.
const NEAR: usize = 4096;
const WORDS: usize = NEAR / size_of::<usize>();

/// Two loops that allocate, and one that is not compiled.
const LOOPS: &CStr = c"
  jit.on()
  jit.opt.start(3, 'hotloop=10')
  local function one() local list = {} for i = 1, 200 do list[i] = { i } end end
  local function other() local list = {} for i = 1, 200 do list[i] = { i, i } end end
  local function plain() local list = {} for i = 1, 200 do list[i] = { i } end end
  jit.off(plain)
  one() other()
  return plain, one, other
";

/// What the words were when the allocator was called.
struct Watch {
    inner: unsafe extern "C" fn(*mut c_void, *mut c_void, usize, usize) -> *mut c_void,
    inner_data: *mut c_void,
    state: *mut lua_State,
    calls: usize,
    /// How often each word was null, and how often it was the address that it had been before.
    null: Vec<usize>,
    last: Vec<usize>,
    same: Vec<usize>,
}

impl Watch {
    fn clear(&mut self) {
        self.calls = 0;
        self.null.fill(0);
        self.last.fill(0);
        self.same.fill(0);
    }
}

/// # Safety
/// As LuaJIT's allocators; `data` is a [`Watch`].
unsafe extern "C" fn allocate(data: *mut c_void, block: *mut c_void, old: usize, new: usize) -> *mut c_void {
    // SAFETY: the watch outlives its use. The block that has the state is larger than what is read.
    unsafe {
        let watch = &mut *data.cast::<Watch>();
        if new > 0 && block.is_null() {
            watch.calls += 1;
            for word in 0..WORDS {
                let value = watch.state.cast::<usize>().add(word).read_volatile();
                watch.null[word] += usize::from(value == 0);
                let is_address = value > 1 << 16 && value.is_multiple_of(8);
                watch.same[word] += usize::from(is_address && value == watch.last[word]);
                watch.last[word] = value;
            }
        }
        (watch.inner)(watch.inner_data, block, old, new)
    }
}

/// Where the word is, in words from a main state on.
fn find() -> Option<usize> {
    // SAFETY: a new state of this thread, which is closed with its own allocator. Everything in it is protected.
    unsafe {
        let state = ffi::luaL_newstate();
        if state.is_null() {
            return None;
        }
        ffi::luaL_openlibs(state);
        let mut inner_data = null_mut();
        let inner = ffi::lua_getallocf(state, &mut inner_data);
        let mut watch = Watch {
            inner,
            inner_data,
            state,
            calls: 0,
            null: vec![0; WORDS],
            last: vec![0; WORDS],
            same: vec![0; WORDS],
        };
        let source = LOOPS.to_bytes();
        let mut words: Vec<usize> = (1..WORDS).collect();
        let mut is_watched = false;
        if ffi::luaL_loadbuffer(state, source.as_ptr().cast(), source.len(), c"=msys".as_ptr()) == ffi::LUA_OK
            && ffi::lua_pcall(state, 0, 3, 0) == ffi::LUA_OK
        {
            ffi::lua_setallocf(state, allocate, (&raw mut watch).cast());
            is_watched = (1..=3).all(|loop_of| {
                watch.clear();
                ffi::lua_pushvalue(state, loop_of);
                let ran = ffi::lua_pcall(state, 0, 0, 0) == ffi::LUA_OK;
                words.retain(|word| match loop_of {
                    1 => watch.null[*word] == watch.calls,
                    _ => watch.same[*word] > watch.calls * 3 / 4,
                });
                ran && watch.calls >= 100
            });
            ffi::lua_setallocf(state, inner, inner_data);
        }
        ffi::lua_close(state);
        match words[..] {
            [word] if is_watched => Some(word),
            _ => None,
        }
    }
}

/// Where to look; 0 where that is not known. No lock, which a fork could leave locked: two threads find the same.
static WORD: AtomicUsize = AtomicUsize::new(0);

/// Finds out where to look; before [`runs`] is asked.
pub fn prepare() {
    if WORD.load(Ordering::Relaxed) == 0
        && let Some(word) = find()
    {
        WORD.store(word, Ordering::Relaxed);
    }
}

/// Whether compiled code of this VM has called the function that asks; false where that is not known.
///
/// # Safety
/// The main state of a live VM of this thread.
pub unsafe fn runs(main: *mut lua_State) -> bool {
    let word = WORD.load(Ordering::Relaxed);
    // SAFETY: within the block of the state.
    word != 0 && unsafe { main.cast::<usize>().add(word).read_volatile() != 0 }
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(not(feature = "module"))]
    fn the_word_is_found() {
        assert!(super::find().is_some());
    }
}
