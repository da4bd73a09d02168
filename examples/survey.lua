-- What a folder holds: lines, words, bytes, the most frequent words, and which regular files are duplicates.
--
--   luajit examples/survey.lua [DIR] [--inline]
--
-- DIR is by default the sources of the crates that Cargo has fetched. Files are read in pool "IO" and counted
-- in pool "CPU"; with --inline the same functions run in this one VM, so both print the same report. It goes
-- to stdout; progress, skipped files and the time taken go to stderr. The exit status is 0, or 1 if DIR can't
-- be opened or a job failed, or 2 for wrong arguments.
--
-- The rules: a word is two or more ASCII letters in a row, in any case. A last line counts without its newline
-- too. Symbolic links below DIR are not followed. What can't be read is reported and skipped. Duplicates are
-- files of equal bytes, be they none: those of one size and hash are read a second time to make sure.

local bit = require "bit"
local ffi = require "ffi"

local msys -- required below, unless --inline

-- A batch is what one job gets. Every batch finds the word "the" anew, so the host has less to add up if they
-- are large. But a worker whose job waits for its files takes another job meanwhile, and the first worker to
-- start could take all that there is: so the first batches are small.
local FIRST_BATCH, LARGEST_BATCH = 256 * 1024, 4 * 1024 * 1024
local FILE_COST = 512 -- in bytes: a batch of empty files has an end too
local LARGEST_FILE = 256 * 1024 * 1024 -- a file crosses from VM to VM as one string

--------------------------------------------------------------------------------------------------------------
-- The jobs. Workers run copies of them, which see the standard library and the locals that they name, no more.

--- Runs `job(arg)` in a pool, or here and now: `survey` decides. To the jobs it is one more captured local.
---@type fun(pool: string, job: function, arg: any): boolean, any, any
local run_in

--- All of a file. Its size is no guide: it may grow, and files in /proc have none.
---@param path string
---@return string? text
---@return string? failure
local function read_file(path)
  local file, failure = io.open(path, "rb")
  if not file then
    return nil, failure:sub(1, #path) == path and failure:sub(#path + 3) or failure -- "PATH: REASON"
  end
  local parts, size = {}, 0
  local part
  repeat
    part, failure = file:read(65536)
    parts[#parts + 1], size = part, size + #(part or "")
    if size > LARGEST_FILE then failure = ("larger than %d MiB"):format(LARGEST_FILE / 2 ^ 20) end
  until not part or failure
  file:close()
  return not failure and table.concat(parts) or nil, failure
end

--- The IO job.
---@param paths string[]
---@return (string|false)[] texts in the order of `paths`; false for a file that can't be read
---@return table<string, string> failures why not, by path
local function read_files(paths)
  local texts, failures = {}, {}
  for i, path in ipairs(paths) do
    local text, failure = read_file(path)
    texts[i], failures[path] = text or false, failure
  end
  return texts, failures
end

--- Reads files from within a CPU job. The job asks, not the host: so the bytes go from the IO worker to the
--- CPU worker, and the host, of which there is but one, never touches them. The CPU worker runs others meanwhile.
---@param paths string[]
local function fetch(paths)
  local ok, texts, failures = run_in("IO", read_files, paths)
  if not ok then error(texts, 0) end
  return texts, failures
end

--- Adds the words of `text` to `tally`.
---@param text string
---@param tally table<string, integer>
---@return integer lines
---@return integer words
local function count_text(text, tally)
  local lower, size = text:lower(), #text -- `lower` stays a local: the pointer alone would not keep it alive
  local byte = ffi.cast("const uint8_t *", lower)
  local lines, words, i = 0, 0, 0
  while i < size do
    if byte[i] >= 97 and byte[i] <= 122 then -- a to z
      local start = i
      repeat
        i = i + 1
      until i == size or byte[i] < 97 or byte[i] > 122
      if i - start >= 2 then
        local word = ffi.string(byte + start, i - start)
        tally[word], words = (tally[word] or 0) + 1, words + 1
      end
    else
      if byte[i] == 10 then lines = lines + 1 end
      i = i + 1
    end
  end
  if size > 0 and lower:byte(-1) ~= 10 then lines = lines + 1 end
  return lines, words
end

--- The size and a hash: two lanes of add, rotate and xor, which LuaJIT compiles to little more. It passes
--- over an odd one to three bytes at the end, and need not be strong, as only equal bytes prove a duplicate.
---@param text string
---@return string key such as "12:0123456789abcdef"
local function content_key(text)
  local rol, tobit, bxor = bit.rol, bit.tobit, bit.bxor
  local word = ffi.cast("const int32_t *", text)
  local a, b = 0, 0
  for i = 0, bit.rshift(#text, 2) - 1 do
    a = tobit(rol(bxor(a, word[i]), 5) + b)
    b = bxor(rol(tobit(b + word[i]), 13), a)
  end
  return #text .. ":" .. bit.tohex(a) .. bit.tohex(b)
end

--- The first CPU job.
---@param paths string[]
---@return { totals: table<string, integer>, tally: table<string, integer>, keys: table<string, string> }
---@return table<string, string> failures
local function count_batch(paths)
  local texts, failures = fetch(paths)
  local totals, tally, keys = { files = 0, bytes = 0, lines = 0, words = 0 }, {}, {}
  for i, text in ipairs(texts) do
    if text then
      local lines, words = count_text(text, tally)
      totals.files, totals.bytes = totals.files + 1, totals.bytes + #text
      totals.lines, totals.words = totals.lines + lines, totals.words + words
      keys[paths[i]] = content_key(text)
    end
  end
  return { totals = totals, tally = tally, keys = keys }, failures
end

--- The second CPU job: which of these are equal? Equal strings are one table key, and that is the comparison.
---@param paths string[]
---@return { redundant: integer, [integer]: string }[] groups paths of equal files, with what all but one take
---@return table<string, string> failures
local function compare_batch(paths)
  local texts, failures = fetch(paths)
  local by_text, groups = {}, {}
  for i, text in ipairs(texts) do
    if text then
      local group = by_text[text] or { redundant = -#text }
      by_text[text] = group
      group[#group + 1], group.redundant = paths[i], group.redundant + #text
      if #group == 2 then groups[#groups + 1] = group end
    end
  end
  return groups, failures
end

--------------------------------------------------------------------------------------------------------------
-- The folder, by way of the C library. As ffi.cdef is for the whole VM, all names are our own. dirent is that
-- of 64-bit Linux; statx is there because it has one layout on all of Linux, which stat has not.

local declarations = [[
struct survey_dirent { uint64_t ino; int64_t off; uint16_t reclen; uint8_t type; char name[256]; };
struct survey_statx { uint32_t mask, blksize; uint64_t attributes; uint32_t nlink, uid, gid; uint16_t mode;
                      uint64_t ino, size; char rest[208]; };
struct survey_time { long sec, nsec; };
void *survey_opendir(const char *) __asm__("opendir");
struct survey_dirent *survey_readdir(void *) __asm__("readdir");
int survey_closedir(void *) __asm__("closedir");
int survey_dirfd(void *) __asm__("dirfd");
int survey_statx(int, const char *, int, unsigned, struct survey_statx *) __asm__("statx");
char *survey_strerror(int) __asm__("strerror");
int survey_isatty(int) __asm__("isatty");
int survey_clock_gettime(int, struct survey_time *) __asm__("clock_gettime");
]]
pcall(ffi.cdef, declarations) -- fails if done before, which is well
local C = ffi.C
local NOFOLLOW, TYPE_AND_SIZE, S_IFMT, S_IFDIR, S_IFREG = 0x100, 0x201, 0xf000, 0x4000, 0x8000
local CLOCK_MONOTONIC = 1

local function last_error()
  return ffi.string(C.survey_strerror(ffi.errno()))
end

---@class survey.Item paths that belong in one batch
---@field cost integer
---@field [integer] string

--- Iterates over the regular files below `root`, opening no folder before its turn: so the host looks into
--- the next ones while workers count the last.
---@param root string
---@param failures table<string, string> receives what can't be listed
---@return (fun(): survey.Item?)? files nil if `root` itself can't be opened
---@return string? failure why
local function walk(root, failures)
  local files, folders, stat = {}, {}, ffi.new "struct survey_statx"

  local function scan(folder)
    local dir, prefix = C.survey_opendir(folder), folder:match "/$" and folder or folder .. "/"
    if dir == nil then return last_error() end
    local entry
    repeat
      ffi.errno(0)
      entry = C.survey_readdir(dir)
      local name = entry ~= nil and ffi.string(entry.name) or "."
      local path = prefix .. name
      if name ~= "." and name ~= ".." then
        local failed = C.survey_statx(C.survey_dirfd(dir), name, NOFOLLOW, TYPE_AND_SIZE, stat) ~= 0
        local kind = bit.band(stat.mode, S_IFMT)
        if failed then
          failures[path] = last_error()
        elseif kind == S_IFDIR then
          folders[#folders + 1] = path
        elseif kind == S_IFREG then
          files[#files + 1] = { path, cost = tonumber(stat.size) + FILE_COST }
        end
      end
    until entry == nil
    local failure = ffi.errno() ~= 0 and last_error() or nil
    C.survey_closedir(dir)
    return failure
  end

  local failure = scan(root)
  if failure then return nil, failure end
  return function()
    while #files == 0 and #folders > 0 do
      local folder = table.remove(folders)
      failures[folder] = scan(folder)
    end
    return table.remove(files)
  end
end

--------------------------------------------------------------------------------------------------------------
-- The host: hands out batches, adds up what comes back, and reports.

--- Gives all items in batches to `job` in pool CPU, and each result to `merge`, in any order. Each of a few
--- sessions has one batch in the pool: twice as many as cores, so a worker has one to count while another
--- waits for files; no more, so that what remains is for the first who is free.
---@param items fun(): survey.Item?
---@param job fun(paths: string[]): table, table<string, string>
---@param failures table<string, string>
---@param merge fun(result: table)
local function for_each_batch(items, job, failures, merge)
  local limit = FIRST_BATCH
  local function next_batch()
    local batch, cost = {}, 0
    while cost < limit do
      local item = items()
      if not item then break end
      for _, path in ipairs(item) do
        batch[#batch + 1] = path
      end
      cost = cost + item.cost
    end
    limit = math.min(limit * 1.5, LARGEST_BATCH)
    return batch[1] and batch
  end

  local failure
  local function session()
    for batch in next_batch do
      local ok, result, unread = run_in("CPU", job, batch)
      if not ok then error(result, 0) end
      if failure then return end
      for path, reason in pairs(unread) do
        failures[path] = reason
      end
      merge(result)
    end
  end
  if not msys then return session() end
  for _ = 1, 2 * msys.threadpool.stat("CPU").concurrency do
    msys.spawn(function()
      local ok, err = pcall(session)
      if not ok then failure = failure or { err } end
    end)
  end
  msys.run()
  if failure then error(failure[1], 0) end
end

--- Iterates over the files whose key is not theirs alone, those of one key together.
---@param keys table<string, string>
---@return fun(): survey.Item?
local function suspects(keys)
  local by_key, items = {}, {}
  for path, key in pairs(keys) do
    local item = by_key[key] or { cost = 0 }
    by_key[key] = item
    item[#item + 1], item.cost = path, item.cost + tonumber(key:match "%d+") + FILE_COST
    if #item == 2 then items[#items + 1] = item end
  end
  return function()
    return table.remove(items)
  end
end

--- The `count` keys of `set` that go before all others, in order. Sorting all the words would take far longer.
---@generic T
---@param count integer
---@param set table<T, any>
---@param before fun(a: T, b: T): boolean
---@return T[]
local function first(count, set, before)
  local best = {}
  for key in pairs(set) do
    if #best < count or before(key, best[count]) then
      local place = math.min(#best + 1, count)
      while place > 1 and before(key, best[place - 1]) do
        best[place], place = best[place - 1], place - 1
      end
      best[place] = key
    end
  end
  return best
end

--- A path fit for one line: control characters, which a name may hold, become `\ddd`.
---@param path string
---@return string
local function printable(path)
  return (path:gsub("[%c\\]", function(char)
    return ("\\%03d"):format(char:byte())
  end))
end

local is_terminal = C.survey_isatty(2) == 1

--- Rewrites the progress line.
---@param text string empty to clear it
local function progress(text)
  if is_terminal then io.stderr:write("\r\27[K", text) end
end

--- Surveys a folder and prints the report.
---@param root string
---@param inline boolean?
---@return string? failure why `root` can't be opened
local function survey(root, inline)
  local failures = {}
  local files, failure = walk(root, failures)
  if not files then return failure end
  if inline then
    run_in = function(_, job, arg)
      return pcall(job, arg)
    end
  else
    msys = require "msys"
    run_in = function(pool, job, arg)
      return msys.runInPool(pool, job, { args = { n = 1, arg } })
    end
  end

  local totals, tally, keys = { files = 0, bytes = 0, lines = 0, words = 0 }, {}, {}
  for_each_batch(files, count_batch, failures, function(counts)
    for name, n in pairs(counts.totals) do
      totals[name] = totals[name] + n
    end
    for word, n in pairs(counts.tally) do
      tally[word] = (tally[word] or 0) + n
    end
    for path, key in pairs(counts.keys) do
      keys[path] = key
    end
    progress(("%d files, %.0f MiB"):format(totals.files, totals.bytes / 2 ^ 20))
  end)

  local groups, group_count, duplicates, redundant = {}, 0, 0, 0
  for_each_batch(suspects(keys), compare_batch, failures, function(found)
    for _, group in ipairs(found) do
      table.sort(group)
      groups[group], group_count = true, group_count + 1
      duplicates, redundant = duplicates + #group, redundant + group.redundant
    end
    progress(("%d files, %d duplicates"):format(totals.files, duplicates))
  end)
  progress ""

  local skipped = {}
  for path, reason in pairs(failures) do
    skipped[#skipped + 1] = ("survey: skipped %s: %s\n"):format(printable(path), reason)
  end
  table.sort(skipped)
  io.stderr:write(table.concat(skipped))

  local sums = "%s: %d files, %d bytes, %d lines, %d words, %d skipped\n"
  print(sums:format(printable(root), totals.files, totals.bytes, totals.lines, totals.words, #skipped))
  local top_words = first(20, tally, function(a, b)
    return tally[a] > tally[b] or tally[a] == tally[b] and a < b
  end)
  for _, word in ipairs(top_words) do
    print(("%10d  %s"):format(tally[word], word))
  end
  print(("\n%d files in %d groups of equals, %d bytes redundant"):format(duplicates, group_count, redundant))
  local top_groups = first(5, groups, function(a, b)
    return a.redundant > b.redundant or a.redundant == b.redundant and a[1] < b[1]
  end)
  for _, group in ipairs(top_groups) do
    local example = group[1]:sub(#root + 1):gsub("^/+", "")
    print(("%10d  in %d files like %s"):format(group.redundant, #group, printable(example)))
  end
end

---@return number seconds
local function now()
  local time = ffi.new "struct survey_time"
  C.survey_clock_gettime(CLOCK_MONOTONIC, time)
  return tonumber(time.sec) + tonumber(time.nsec) / 1e9
end

local root, inline
for _, word in ipairs(arg) do
  if word == "--inline" then
    inline = true
  elseif root or word:sub(1, 1) == "-" then
    io.stderr:write "usage: luajit examples/survey.lua [DIR] [--inline]\n"
    os.exit(2)
  else
    root = word
  end
end
root = root or (os.getenv "CARGO_HOME" or (os.getenv "HOME" or "") .. "/.cargo") .. "/registry/src"

local started = now()
local failure = survey(root, inline)
if failure then
  io.stderr:write(("survey: cannot open %s: %s\n"):format(printable(root), failure))
  os.exit(1)
end
io.stderr:write(("survey: %.2f s\n"):format(now() - started))
