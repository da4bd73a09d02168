---@meta msys.native

--- The Rust module, as the Lua face sees it. Private. Slots, tickets, modes and flags: see src/host/jobs.rs.
---@class msys.native
---@field version string
---@field is_worker boolean
---@field max_pumps integer
---@field pool_metatable table
local native = {}

--- Sends a job; gives its id (or the message's size, with the flag that asks for that), or nil, a reason ("unknown",
--- "shutdown", "full", "scan", "refused", "large", "text", "lost"), its value, and why that value cannot cross.
---@param pool integer
---@param mode 0|1|2
---@param ticket integer
---@param slot? integer
---@param name? string
---@param flags integer
---@param closure function
---@param completion? function
---@param ... any
---@return integer? id
---@return string? reason
---@return any value
---@return string? why
function native.submit(pool, mode, ticket, slot, name, flags, closure, completion, ...) end

--- The next event: a kind and what belongs to it.
---@param block boolean
---@param deep? boolean  take no new job, but one that is waited for
---@return integer kind
---@return any ...
function native.next(block, deep) end

--- A job's closure, completion and arguments; or the name of a module to load first.
---@param slot integer
---@return string|function
---@return function? completion
---@return any ...
function native.open(slot) end

--- Ends a job with its outcome: gives true (or the message's size) and whether the memory's limit was met; or nil, a
--- reason, its value and why that cannot cross, and the job goes on.
---@param slot integer
---@param flags integer
---@param ok boolean
---@param ... any
---@return true|integer|nil sent
---@return any reason
---@return any value
---@return string? why
function native.finish(slot, flags, ok, ...) end

--- Closure, completion and arguments of a job that somebody waits for, as they are now; nothing where nothing of them
--- can have changed.
---@param slot integer
---@return function? closure
---@return nil completion
---@return any ...
function native.sent_to(slot) end

--- Garbage has been collected.
function native.memory_settled() end

---@param slot? integer
---@param scanned boolean
---@param ok false
---@param err any
---@param info table
---@return boolean? sent
---@return string? reason
---@return any value
---@return string? why
function native.report(slot, scanned, ok, err, info) end

---@param flags integer
---@param closure function
---@return boolean? packed
---@return string? reason
---@return any value
---@return string? why
function native.pack(flags, closure) end

--- How many bytes a value has in a message; nil if it cannot cross.
---@param value any
---@return integer? bytes
function native.measure(value) end

--- The values as a job in this VM would get them; for benchmarks and tests. Raises where they cannot cross.
---@param ... any
---@return any ...
function native.copy(...) end

--- The globals that a Lua function's code names, but for those that every VM has.
---@param fn function
---@return string[]? names
function native.globals_of(fn) end

---@param slot? integer
---@return integer? id
---@return string? pool
---@return string? name
function native.describe(slot) end

---@param ticket integer
function native.settle(ticket) end

---@return integer count  of asynchronous jobs still to end
function native.pending() end

---@return boolean
function native.is_interrupted() end

---@param seconds number
---@param ticket integer
function native.timer(seconds, ticket) end

---@param pool integer
---@param ticket integer
function native.await_room(pool, ticket) end

---@return integer? descriptor
---@return string? text
function native.fd() end

function native.acknowledge() end

---@param ready boolean
function native.watch(ready) end

---@return boolean
function native.has_init() end

---@return string|function|nil
function native.open_init() end

function native.init_done() end

---@param text string
---@return boolean told  whether queued jobs failed with it
function native.init_failed(text, traceback) end

---@return string?
function native.pool_name() end

---@param slot? integer
---@param pool integer
---@return boolean
function native.has_ancestor_in(slot, pool) end

---@param object any
---@param module string
---@param field string
---@param builtin? boolean
function native.learn(object, module, field, builtin) end

function native.forget_names() end

function native.scanned() end

--- What a chunk gives when it runs in a new VM.
---@param source string
---@return string? text
function native.fresh_names(source) end

--- What takes FFI objects apart, and what makes them: see `msys.cdata`.
---@param pack fun(value: any): string?, string?
---@param unpack fun(name: string, bytes: string): any
---@param fill fun(value: any, bytes: string)
function native.set_cdata(pack, unpack, fill) end

--- What makes the environments of jobs: see `msys.environment`.
---@param behind table  the metatable of environments that nobody looks at
---@param new fun(init: boolean): table
---@param leave_out fun(env: table, name: string, why: string)
---@param known table<table, true>
---@param kind_of fun(value: any): string
---@param builtin fun(): string
function native.set_environment(behind, new, leave_out, known, kind_of, builtin) end

---@param name string
function native.module_tried(name) end

---@param path string
---@param cpath string
function native.set_paths(path, cpath) end

---@param slot integer
---@return string? path
---@return string? cpath
function native.paths_of(slot) end

---@param options table
---@return integer? id
---@return string? text
function native.create(options) end

---@param given any
---@return integer? id
---@return string? name
function native.find(given) end

---@return string names
function native.known() end

---@return integer
function native.count() end

---@param id integer
---@return msys.Stat?
function native.stat(id) end

---@param id integer
---@param concurrency number
---@return boolean? ok
---@return string? text
function native.resize(id, concurrency) end

---@param id integer
---@param drop boolean
function native.shutdown(id, drop) end

---@param id integer
---@param ticket integer
function native.await_end(id, ticket) end

--- A pool's object for its id, its id for its object, nil for anything else.
---@param given any
---@return any
function native.handle(given) end

return native
