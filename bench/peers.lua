--- msys and its peers, each row in processes of their own, in turn; writes the tables and pictures of BENCHMARKS.md.
---
--- `make bench`; `luajit bench/peers.lua [rounds] [row...]` for some of it, which is only printed. Ratios count:
--- absolute figures depend on the machine and its other guests.

local measure = require "bench.measure"
local chart = require "bench.chart"

local short = measure.short

local PEERS = { "msys", "luv", "cqueues", "love", "nginx" }
local NAMES = {
  msys = "msys",
  luv = "luv `new_work`",
  cqueues = "cqueues.thread",
  love = "love.thread",
  nginx = "ngx.run_worker_thread",
}

--- Where Lua's programs run: a command that gets the peer's row as its last argument.
local COMMANDS = {
  msys = "luajit bench/peers/msys.lua",
  luv = "luajit bench/peers/luv.lua",
  cqueues = "luajit bench/peers/cqueues.lua",
  love = 'love bench/peers/love "$PWD"',
  nginx = "bench/peers/nginx.sh",
}

--- What is measured. `less` is better, or more; `second` names the second figure of those that have two; `pinned` has
--- all on one core; `peers` are those that can do it; `bound`: with what `BOUNDS` say.
local ROWS = {
  {
    row = "closures",
    what = "tiny jobs, each a new function with a new completion, thousands a second",
    scale = 1e-3,
    peers = { "msys", "luv" },
  },
  {
    row = "tiny",
    what = "the same, peers with one function that they prepared, thousands a second",
    scale = 1e-3,
    peers = { "msys", "luv", "nginx" },
  },
  {
    row = "channels",
    what = "numbers to a loop in each thread and back, thousands a second",
    scale = 1e-3,
    peers = { "msys", "cqueues", "love" },
  },
  { row = "sessions", what = "tiny jobs from 100 sessions that wait, thousands a second", scale = 1e-3 },
  { row = "worker", what = "tiny jobs submitted by a worker, thousands a second", scale = 1e-3 },
  {
    row = "trip",
    what = "round trip, median, µs",
    less = true,
    second = "round trip, p99, µs",
    peers = PEERS,
  },
  {
    row = "trip",
    what = "round trip, all on one core, median, µs",
    less = true,
    second = "round trip, all on one core, p99, µs",
    pinned = true,
    peers = PEERS,
  },
  {
    row = "short",
    what = "what a job of 0.1 ms takes besides, one after the other, median, µs",
    less = true,
    second = "the same, p99, µs",
    peers = PEERS,
  },
  { row = "numeric", what = "speed-up, numeric jobs of 5 ms", peers = PEERS, bound = true },
  { row = "tables", what = "speed-up, table-heavy jobs of 5 ms", peers = PEERS, bound = true },
  { row = "fib", what = "nested jobs, thousands a second", scale = 1e-3 },
  { row = "map", what = "items of `msys.map`, millions a second", scale = 1e-6 },
  {
    row = "one",
    what = "pool of four made, one job, stopped, ms",
    less = true,
    peers = { "msys", "cqueues", "love" },
  },
  {
    row = "pool",
    what = "pool of four made, four jobs, stopped, ms",
    less = true,
    peers = { "msys", "cqueues", "love" },
  },
  {
    row = "memory",
    what = "resident memory a worker, KiB",
    less = true,
    peers = { "msys", "luv", "cqueues", "love" },
  },
  { row = "queued", what = "resident memory a queued job, bytes, of 100,000", less = true },
  { row = "idle", what = "CPU of an idle process, % of a core", less = true },
}

local function read(command)
  local pipe = assert(io.popen(command))
  local text = pipe:read "*a"
  pipe:close()
  return text
end

--- The figures of a peer's row, one or two; nil where it has failed, which is said.
local function run(peer, row)
  local threads = row.row == "memory" and 66 or 2
  local place = row.pinned and "taskset -c 0 " or ""
  local command
  if peer == "nginx" then
    command = ("%s %s %s"):format(COMMANDS[peer], row.row, place)
  else
    command = ("%s%s %s"):format(place, COMMANDS[peer], row.row)
  end
  local text = read(("UV_THREADPOOL_SIZE=%d timeout 120 %s 2>build/bench.err"):format(threads, command))
  local first, second = text:match "^(%S+)%s+(%S*)"
  if not tonumber(first) then
    io.stderr:write(
      ("bench: %s cannot do %s:\n%s\n"):format(peer, row.row, read "head -c 2000 build/bench.err")
    )
    return
  end
  return tonumber(first), tonumber(second)
end

local function has(peer)
  if peer == "msys" then return true end
  if peer == "nginx" then return os.execute "test -d build/nginx" == 0 end
  if peer == "love" then return os.execute "command -v love >/dev/null" == 0 end
  return os.execute(("luajit -e 'require %q' 2>/dev/null"):format(peer)) == 0
end

local rounds = tonumber(arg[1]) or 5
local wanted
for place = 2, #arg do
  wanted = wanted or {}
  wanted[arg[place]] = true
end

local present = {}
for _, peer in ipairs(PEERS) do
  present[peer] = has(peer)
  if not present[peer] then io.stderr:write(("bench: %s is not there, and is left out\n"):format(peer)) end
end

--- By row, figure (1 or 2) and peer: all that was measured.
local figures = {}
--- What else is measured of the rows of two workers' speed-up: by command, what is said of it and all figures by row.
local BOUNDS = {
  {
    command = "luajit bench/peers/processes.lua %s",
    what = "Two processes of plain LuaJIT with nothing in common, half of the jobs each, against one",
    numeric = {},
    tables = {},
  },
  {
    command = "luajit bench/peers/msys.lua %s unguarded",
    what = "msys with a pool of `interruptible = false`, whose compiled code has no guards",
    numeric = {},
    tables = {},
  },
}
for place, row in ipairs(ROWS) do
  figures[place] = { {}, {} }
  if not wanted or wanted[row.row] then
    for round = 1, rounds do
      for _, peer in ipairs(row.peers or { "msys" }) do
        if present[peer] then
          local first, second = run(peer, row)
          for which, value in pairs { first, second } do
            local list = figures[place][which]
            list[peer] = list[peer] or {}
            table.insert(list[peer], value * (row.scale or 1))
          end
        end
      end
      for _, bound in ipairs(row.bound and BOUNDS or {}) do
        local figure = tonumber(read(bound.command:format(row.row)))
        if figure then table.insert(bound[row.row], figure) end
      end
      io.stderr:write(("\rbench: %s, round %d of %d   "):format(row.what, round, rounds))
    end
    io.stderr:write "\n"
  end
end

local lines = {}
local function say(text, ...)
  lines[#lines + 1] = select("#", ...) > 0 and text:format(...) or text
end

--- Medians by the row's text and peer, for the pictures.
local medians = {}

say "| what |"
for _, peer in ipairs(PEERS) do
  lines[1] = ("%s %s |"):format(lines[1], NAMES[peer])
end
lines[1] = lines[1] .. " msys against the best peer |"
say("|---|%s---|", ("---|"):rep(#PEERS))
for place, row in ipairs(ROWS) do
  for which, what in ipairs { row.what, row.second } do
    local list = figures[place][which]
    if list.msys then
      local cells, best = {}, nil
      medians[what] = {}
      for _, peer in ipairs(PEERS) do
        if list[peer] then
          local middle, least, most = measure.median(list[peer])
          medians[what][peer] = middle
          cells[#cells + 1] = ("%s (%s to %s)"):format(short(middle), short(least), short(most))
          if
            peer ~= "msys" and (not best or (row.less and middle < best or not row.less and middle > best))
          then
            best = middle
          end
        else
          cells[#cells + 1] = "–"
        end
      end
      local own = medians[what].msys
      local ratio = best and ("%.2f times"):format(row.less and best / own or own / best) or ""
      say("| %s | %s | %s |", what, table.concat(cells, " | "), ratio)
    end
  end
end

if #BOUNDS[1].numeric + #BOUNDS[1].tables > 0 then say "\nIn the same rounds:\n" end
for _, bound in ipairs(BOUNDS) do
  local texts = {}
  for _, row in ipairs { "numeric", "tables" } do
    if #bound[row] > 0 then
      local middle, least, most = measure.median(bound[row])
      local what = row == "numeric" and "numeric" or "table-heavy"
      texts[#texts + 1] = ("%s %s (%s to %s)"):format(what, short(middle), short(least), short(most))
    end
  end
  if #texts > 0 then say("- %s: %s.", bound.what, table.concat(texts, ", ")) end
end

local table_text = table.concat(lines, "\n") .. "\n"
print(table_text)
if wanted then return end

local machine = read([[LC_ALL=C lscpu | sed -n 's/^Model name: *//p']]):gsub("\n", "")
local cores = read("nproc"):gsub("\n", "")
local luajit = read("luajit -v"):match "^(%S+ %S+)"
local head = ("%s, %s cores (%s), %s, %d rounds in turn, each in its own process; two workers each. Median,\n"):format(
  os.date "!%Y-%m-%d",
  cores,
  machine,
  luajit,
  rounds
) .. "and from what to what; and by how many times msys is better than the best of the others.\n\n"

--- Puts `text` between the marks of that name in BENCHMARKS.md.
local function put(name, text)
  local file = assert(io.open "BENCHMARKS.md")
  local all = file:read "*a"
  file:close()
  local from, to = ("<!-- %s -->\n"):format(name), ("<!-- end of %s -->"):format(name)
  local _, begins = all:find(from, 1, true)
  local ends = all:find(to, 1, true)
  assert(begins and ends, "BENCHMARKS.md has no marks for " .. name)
  file = assert(io.open("BENCHMARKS.md", "w"))
  file:write(all:sub(1, begins), text, all:sub(ends))
  file:close()
end
put("peers", head .. table_text)

local function bars(what, title)
  local list = {}
  for _, peer in ipairs(PEERS) do
    if medians[what][peer] then list[#list + 1] = { peer, medians[what][peer] } end
  end
  return { title = title, bars = list }
end
local function row_of(name, pinned)
  for _, row in ipairs(ROWS) do
    if row.row == name and row.pinned == pinned then return row end
  end
  error("bench/peers.lua: no row " .. name)
end
local trip = row_of "trip"
chart.bars("bench/peers.svg", {
  bars(row_of("closures").what, "new functions as jobs, thousands a second"),
  bars(row_of("tiny").what, "tiny jobs, thousands a second"),
  bars(trip.what, "round trip, µs (less is better)"),
  bars(trip.second, "round trip, p99, µs (less is better)"),
  bars(row_of("trip", true).what, "round trip on one core, µs (less is better)"),
})
