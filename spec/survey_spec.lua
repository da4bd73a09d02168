-- The demo as its user runs it: each test surveys a folder of its own, in a child process.

---@param text string
---@return string word of a shell's command line
local function quoted(text)
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

---@param path string
---@return string
local function contents(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

---@param command string
---@return integer? status
local function shell(command)
  local pipe = assert(io.popen("( " .. command .. "\n) </dev/null >/dev/null; echo $?"))
  local status = tonumber(pipe:read "*a")
  pipe:close()
  return status
end

describe("examples/survey.lua", function()
  local scratch, tree

  before_each(function()
    scratch = os.tmpname()
    os.remove(scratch)
    tree = scratch .. "/tree"
    assert.equal(0, shell("mkdir -p " .. quoted(tree .. "/sub/deep")))
  end)

  after_each(function()
    assert.equal(0, shell("rm -rf " .. quoted(scratch)))
  end)

  ---@param name string below the tree
  ---@param text string
  local function write(name, text)
    local file = assert(io.open(tree .. "/" .. name, "wb"))
    file:write(text)
    file:close()
  end

  ---@param arguments string for the shell
  ---@param prelude string? Lua to run before the script
  ---@return { status: integer, report: string, log: string } run without the last line of the log, which is the time
  local function survey(arguments, prelude)
    local command = {
      -- A bare `busted` has its paths from .busted, which its child processes do not read.
      "LUA_PATH=" .. quoted(package.path),
      "LUA_CPATH=" .. quoted(package.cpath),
      "CARGO_HOME=" .. quoted(scratch .. "/cargo"),
      quoted(os.getenv "LUAJIT" or "luajit"),
      os.getenv "LUAJIT_FLAGS" or "",
      prelude and "-e " .. quoted(prelude) or "",
      "examples/survey.lua",
      arguments,
      ">" .. quoted(scratch .. "/report"),
      "2>" .. quoted(scratch .. "/log"),
    }
    local status = shell(table.concat(command, " "))
    local log = contents(scratch .. "/log"):gsub("survey: %d+%.%d+ s\n$", "")
    return { status = status, report = contents(scratch .. "/report"), log = log }
  end

  --- Surveys the tree in both modes, which must not differ.
  ---@return { status: integer, report: string, log: string } run
  local function survey_twice()
    local pooled, inline = survey(quoted(tree)), survey(quoted(tree) .. " --inline")
    assert.same(inline, pooled)
    return pooled
  end

  --- What a survey of the tree should give.
  ---@param lines string[] of the report; the first is to follow the tree's name
  ---@param log string?
  local function run_of(lines, log)
    return { status = 0, report = tree .. ": " .. table.concat(lines, "\n") .. "\n", log = log or "" }
  end

  it("counts regular files, their words and their duplicates, alike in the pools and inline", function()
    write("a.txt", "The cat, the hat.\nThe end")
    write("sub/b.txt", "The cat, the hat.\nThe end")
    write("sub/deep/c.txt", "one\n\nx y zz\n")
    write("new\nline\255.txt", "cat2CAT")
    write("empty", "")
    write("sub/empty", "")
    -- These differ in the one byte that the hash does not see.
    write("sub/d1", "abcdefgh1")
    write("sub/d2", "abcdefgh2")
    local others = "cd %s && ln -s a.txt link && ln -s nowhere dangling && ln -s sub folder && mkfifo fifo"
    assert.equal(0, shell(others:format(quoted(tree))))

    local expected = run_of {
      "8 files, 87 bytes, 10 lines, 18 words, 0 skipped",
      "",
      "         6  the",
      "         4  cat",
      "         2  abcdefgh",
      "         2  end",
      "         2  hat",
      "         1  one",
      "         1  zz",
      "",
      "4 files in 2 groups of equals, 25 bytes redundant",
      "        25  in 2 files like a.txt",
      "         0  in 2 files like empty",
    }
    assert.same(expected, survey_twice())
  end)

  it("adds up what many jobs have counted", function()
    for i = 1, 60 do
      write("f" .. i, ("alpha Beta\n"):rep(9000) .. i % 30 + 10)
    end
    local expected = run_of {
      "60 files, 5940120 bytes, 540060 lines, 1080000 words, 0 skipped",
      "",
      "    540000  alpha",
      "    540000  beta",
      "",
      "60 files in 30 groups of equals, 2970060 bytes redundant",
      "     99002  in 2 files like f1",
      "     99002  in 2 files like f10",
      "     99002  in 2 files like f11",
      "     99002  in 2 files like f12",
      "     99002  in 2 files like f13",
    }
    assert.same(expected, survey_twice())
  end)

  it("lists no more than twenty words", function()
    local words = {}
    for i = 0, 24 do
      words[#words + 1] = ("w" .. string.char(97 + i) .. " "):rep(30 - i)
    end
    write("words", table.concat(words))
    local report = survey_twice().report
    assert.matches("\n        30  wa\n", report, 1, true)
    assert.matches("\n        11  wt\n\n0 files in 0 groups", report, 1, true)
  end)

  it("surveys an empty folder", function()
    local expected = { "0 files, 0 bytes, 0 lines, 0 words, 0 skipped", "", "" }
    expected[4] = "0 files in 0 groups of equals, 0 bytes redundant"
    assert.same(run_of(expected), survey_twice())
  end)

  it("surveys Cargo's sources when no folder is named", function()
    assert.equal(
      0,
      shell(("mkdir -p %s/cargo/registry && cp -R %s %s/cargo/registry/src"):format(scratch, tree, scratch))
    )
    local run = survey "--inline"
    assert.equal(0, run.status)
    assert.matches(scratch .. "/cargo/registry/src: 0 files", run.report, 1, true)
  end)

  describe("skips and reports", function()
    local counted = { "1 files, 4 bytes, 1 lines, 1 words, 1 skipped", "", "         1  kept", "" }
    counted[5] = "0 files in 0 groups of equals, 0 bytes redundant"

    before_each(function()
      write("kept", "kept")
    end)

    -- Even root can't open a path of more than 4095 bytes, though readdir finds the file.
    it("a file that can't be opened", function()
      local folder, name = ("d"):rep(200), ("f"):rep(250)
      local descend =
        "cd %s; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do mkdir %s && cd %s; done; : > %s"
      assert.equal(0, shell(descend:format(quoted(tree), folder, folder, name)))
      local path = tree .. ("/" .. folder):rep(20) .. "/" .. name
      assert.same(run_of(counted, "survey: skipped " .. path .. ": File name too long\n"), survey_twice())
    end)

    it("a file that has vanished since it was listed", function()
      local path = tree .. "/gone"
      local log = "survey: skipped " .. path .. ": No such file or directory\n"
      -- The host calls the one after it has listed the folder, the other before it reads from it.
      local hooks = {
        [""] = [[local table, name = require "msys", "spawn"]],
        ["--inline"] = [[local table, name = io, "open"]],
      }
      for mode, hook in pairs(hooks) do
        write("gone", "gone")
        local prelude = hook
          .. " local f = table[name] table[name] = function(...) os.remove %q return f(...) end"
        assert.same(run_of(counted, log), survey(quoted(tree) .. " " .. mode, prelude:format(path)))
      end
    end)

    it("a file too large for one string", function()
      local file = assert(io.open(tree .. "/large", "wb"))
      file:seek("set", 256 * 1024 * 1024) -- a hole: nothing is written there
      file:write "x"
      file:close()
      assert.same(
        run_of(counted, "survey: skipped " .. tree .. "/large: larger than 256 MiB\n"),
        survey_twice()
      )
    end)
  end)

  it("exits with 1 when the folder can't be opened", function()
    write("file", "")
    local cases = { missing = "No such file or directory", file = "Not a directory" }
    for name, reason in pairs(cases) do
      for _, mode in ipairs { "", " --inline" } do
        local path = tree .. "/" .. name
        local expected =
          { status = 1, report = "", log = ("survey: cannot open %s: %s\n"):format(path, reason) }
        assert.same(expected, survey(quoted(path) .. mode))
      end
    end
  end)

  it("exits with 2 and its usage for wrong arguments", function()
    local usage = "usage: luajit examples/survey.lua [DIR] [--inline]\n"
    for _, arguments in ipairs { "--outline", "-h", ". .", ". --inline ." } do
      assert.same({ status = 2, report = "", log = usage }, survey(arguments))
    end
  end)
end)
