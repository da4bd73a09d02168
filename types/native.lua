---@meta msys.native

--- The Rust module, as the Lua face sees it. Private. Slots, tickets, modes and flags: see src/host/jobs.rs.
---@class msys.native
---@field version string
---@field is_worker boolean
---@field max_pumps integer
---@field pool_metatable table
---@field block lightuserdata  what stands for this VM in calls of the API's functions
---@field api lightuserdata  those functions: see `msys.handles`
---@field metatables table<string, table>  of the handles, by their types' names
local native = {}

--- Sends a job; gives its id (or the message's size, with the flag that asks for that), or nil, a reason ("unknown",
--- "shutdown", "full", "backlog", "scan", "refused", "large", "text", "lost"), its value, and why that value cannot
--- cross.
---@param pool integer
---@param mode 0|1|2
---@param ticket integer
---@param slot? integer
---@param session? integer  the submitting session's number, or 0
---@param name? string
---@param flags integer
---@param limits? table  what ends it: seconds or false, the clock's time when the call was made, a token or false
---@param closure function
---@param completion? function
---@param ... any
---@return integer? id
---@return string? reason
---@return any value
---@return string? why
function native.submit(pool, mode, ticket, slot, session, name, flags, limits, closure, completion, ...) end

--- Sends a job as `runInPool` is most often called; gives the ticket to wait for, or true; or nil, or nil, a reason and
--- a value, of a job that is to be sent by `submit`, or not at all. The completion stands in `waiting` afterwards, if
--- this VM is to run it.
---@param pool integer
---@param slot? integer
---@param session integer  the submitting session's number, or 0
---@param flags integer
---@param waiting table<integer, any>  who waits, by ticket
---@param closure any
---@param third any
---@param mode any
---@return integer|true|nil ticket
---@return string? reason
---@return any value
function native.send(pool, slot, session, flags, waiting, closure, third, mode) end

--- Takes events and runs what it can of them; gives the first that is for the scheduler, as `next` does, or what has
--- become of what it ran: see src/host/direct.rs.
---@param block boolean
---@param most number  of events
---@param session msys.Session  for jobs and completions
---@param co thread  its coroutine, which has ended or not begun
---@param waiting table<integer, any>  who waits, by ticket
---@param main_tls? table  the global `_TLS` outside of sessions, where there is one
---@param xpcall function
---@param failure function
---@param jobs table<integer, msys.Session?>
---@param wait table  what a session yields that waits
---@return integer kind
---@return any ...
function native.turn(block, most, session, co, waiting, main_tls, xpcall, failure, jobs, wait) end

--- The session that runs is not to be used for another job or completion as it is.
function native.touch() end

--- A coroutine for `turn`.
---@return thread
function native.new_thread() end

--- The next turns are on another session, which has no slot.
function native.renew() end

--- Its one upvalue is the running session.
---@param current fun(): msys.Session?
function native.use_current(current) end

--- The slot of the job that `turn` had in hand when it raised.
---@return integer? slot
function native.in_hand() end

--- A ticket that nobody uses.
---@return integer
function native.new_ticket() end

--- Nothing will come for it any more.
---@param ticket integer
function native.release_ticket(ticket) end

--- How many tickets there are, used or not.
---@return integer
function native.tickets() end

--- How many completions are awaited or run, after so many more.
---@param more integer
---@return integer
function native.completions(more) end

--- Lua's own functions as they were when the VM was new: the name of each library, and behind it the functions, each
--- with the name of its field. Nil where they are still there.
---@return (string|function)[]?
function native.originals() end

--- The next event: a kind and what belongs to it.
---@param block boolean
---@param deep? boolean  take no new job, but one that is waited for
---@param ticket? integer  of the pump that calls, which may take a job that its own waits for
---@return integer kind
---@return any ...
function native.next(block, deep, ticket) end

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
---@param ticket integer  to be left when the wait has ended
---@param token? msys.Canceller  which ends the wait, too
function native.await_room(pool, ticket, token) end

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

---@param value any
---@return boolean
function native.is_c(value) end

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

--- Ends a job whose outcome cannot be sent in any other way; allocates nothing in Lua.
---@param slot integer
---@param kind string
---@param text string
function native.fail(slot, kind, text) end

--- Takes away the debug hook of a worker's job, which has failed; a host's hook is its own.
function native.unhook() end

---@param ticket integer  whose timer is of no use any more
function native.end_timer(ticket) end

---@return number seconds  of a clock that only goes forward
function native.clock() end

--- A number for the session that has this name in messages.
---@param name string
---@param slot? integer  of the job that it is
---@return integer session
function native.new_session(name, slot) end

--- Releases the locks that a session has; in a worker, that is reported too.
---@param session integer
---@param slot? integer  of the job that it is
---@return string[]? left  what a host is to report
function native.end_session(session, slot) end

---@param kind integer
---@return thread.Mutex
function native.mutex(kind) end

---@param name string
---@return thread.Mutex
function native.named_mutex(name) end

---@return thread.RwLock
function native.rwlock() end

---@param mutex thread.Mutex
---@return thread.Condition
function native.condition(mutex) end

---@param condition thread.Condition
---@return thread.Mutex
function native.condition_mutex(condition) end

---@param lock any
---@param session integer
---@param write boolean
---@return integer outcome
function native.try_lock(lock, session, write) end

--- Begins to wait, unless the lock is to be had by now; nil and why if that wait would never end.
---@param lock any
---@param session integer
---@param write boolean
---@param ticket integer
---@param timed boolean
---@param place string
---@param slot? integer
---@param below? integer[]  of `scheduler.below`
---@return integer? outcome
---@return string? text
function native.await_lock(lock, session, write, ticket, timed, place, slot, below) end

---@param lock any
---@param session integer
---@param ticket integer
---@param expired boolean
---@return integer outcome
function native.settle_lock(lock, session, ticket, expired) end

---@param lock any
---@param session integer
---@return boolean? unlocked
---@return string? text  whose it is
function native.unlock(lock, session) end

---@param condition thread.Condition
---@param session integer
---@param ticket integer
---@param place string
---@param slot? integer
---@param below? integer[]
---@return boolean? waits
---@return string? text
function native.await_condition(condition, session, ticket, place, slot, below) end

---@param condition thread.Condition
---@param session integer
---@param ticket integer
---@param expired boolean
---@return integer outcome
---@return integer depth  how deep the mutex was locked, if the wait ended without it
---@return boolean signalled
function native.settle_condition(condition, session, ticket, expired) end

---@param mutex thread.Mutex
---@param session integer
---@param depth integer
function native.relock(mutex, session, depth) end

---@param condition thread.Condition
---@param all boolean
---@return integer count
function native.signal(condition, all) end

---@param lock any
---@return string name
---@return string held
function native.describe_lock(lock) end

--- A session waits no longer; for a channel, how that ended.
---@param ticket integer
---@param gone boolean  it is not going to try
---@return integer left
function native.leave(ticket, gone) end

---@param capacity? integer
---@return thread.Channel
function native.channel(capacity) end

--- 1 if it is sent, -1 if the channel is closed, 0 if there is no room: then the session waits, if the ticket is not 0.
---@param channel thread.Channel
---@param scanned boolean
---@param ticket integer
---@param value any
---@return integer? sent
---@return string? reason
---@return any value
---@return string? why
function native.channel_send(channel, scanned, ticket, value) end

---@param channel thread.Channel
---@return integer received  1, 0 or -1 as of `channel_send`
---@return any value
function native.channel_receive(channel) end

---@param channel thread.Channel
---@param ticket integer
---@return boolean waits  if not, it is to try again
function native.channel_wait(channel, ticket) end

---@param channel thread.Channel
---@return boolean was_open
function native.channel_close(channel) end

---@param channel thread.Channel
---@return integer count
---@return integer? capacity
---@return boolean closed
function native.channel_len(channel) end

---@return integer count  of objects in the process that have handles; for tests
function native.alive() end

---@param items integer
---@param fields integer
---@return table
function native.new_table(items, fields) end

---@param value number
---@return thread.Counter?
function native.counter(value) end

---@return table
function native.shared() end

--- One of the process's own: 1 for `msys.shareSet`, 2 for the globals.
---@param number integer
---@return table
function native.process_table(number) end

--- Shares scripts' own globals from now on, unless a worker was started before.
---@return boolean shared
function native.share_globals() end

---@return boolean
function native.shares_globals() end

---@param tbl table
---@param key any
---@return any
function native.shared_get(tbl, key) end

--- The value; with a number if each VM has it for itself, and then without the value if that number is the known one.
---@param tbl table
---@param key any
---@param known integer
---@return any value
---@return integer? number
function native.shared_peek(tbl, key, known) end

---@param tbl table
---@param key any
---@return integer number
function native.shared_private(tbl, key) end

---@param tbl table
---@param scanned boolean
---@param key any
---@param value any
---@return boolean? set
---@return any reason  or the value's number, if each VM has it for itself
---@return any value
---@return string? why
function native.shared_set(tbl, scanned, key, value) end

--- Removes a value, and gives it.
---@param tbl table
---@param key any
---@return any
function native.shared_take(tbl, key) end

---@param tbl table
---@param key any
---@return integer version
---@return any value
function native.shared_version(tbl, key) end

---@param tbl table
---@param scanned boolean
---@param version integer
---@param key any
---@param value any
---@return boolean? swapped
---@return string? reason
---@return any value
---@return string? why
function native.shared_swap(tbl, scanned, version, key, value) end

---@param tbl table
---@return integer
function native.shared_len(tbl) end

---@param tbl table
---@return any[]
function native.shared_keys(tbl) end

---@param ctype string
---@param count integer
---@param size integer
---@return any? view
function native.buffer(ctype, count, size) end

---@param handle any
---@return lightuserdata memory
---@return string ctype
---@return integer count
function native.buffer_memory(handle) end

---@param view fun(handle: any): any
function native.set_buffer_view(view) end

---@param text string
---@param pool string
---@return msys.Future
function native.failed_future(text, pool) end

---@param ticket integer
---@param list msys.Future[]
---@param count integer
---@param slot? integer  of the job that waits, which is stopped with those of the futures' jobs that it has sent
---@return boolean waits
function native.future_wait(ticket, list, count, slot) end

---@param fut msys.Future
---@return boolean? ok
---@return any ...
function native.future_outcome(fut) end

---@param fut msys.Future
---@return "queued"|"running"|"done"|"failed" status
---@return boolean observed
function native.future_status(fut) end

---@param fut msys.Future
---@param text string
---@return boolean cancelled
function native.future_cancel(fut, text) end

--- A cancel token.
---@return msys.Canceller
function native.canceller() end

---@param token msys.Canceller
---@param reason string
---@return boolean first
function native.cancel(token, reason) end

---@param token msys.Canceller
---@return boolean cancelled
---@return string? reason
function native.cancelled(token) end

--- The code of the job in this slot runs from now on, or with -1 none of a job's.
---@param slot integer
function native.enter(slot) end

--- The code of the job in this slot has ended: why it was stopped, if it was.
---@param slot integer
---@param completes boolean  its completion follows, which is not stopped
---@return string? kind
---@return string? text
function native.stopped(slot, completes) end

---@param slot integer
---@return boolean
---@return string? kind
---@return string? text
function native.is_stopped(slot) end

--- Jobs in progress on workers that are stuck in C.
---@return integer
function native.behind_stuck() end

--- In words, how many jobs each pool has.
---@return string
function native.in_progress() end

--- Runs bytecode in a VM of its own: true and its results; or false, the error and a traceback; or nil and a text.
---@param bytecode string
---@param context table
---@param single boolean  the VM is for this execution alone
---@return boolean? ok
---@return any ...
function native.execute(bytecode, context, single) end

--- Starts all workers that the pool may have.
---@param pool integer
function native.start_workers(pool) end

return native
