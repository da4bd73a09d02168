--- The project's own files agree with each other, and what its documents show runs.

local helper = require "spec.helper"
local msys = require "msys"

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

--- The Lua files under lua/, by the names of their modules.
local function modules()
  local found = {}
  local pipe = assert(io.popen "find lua -name '*.lua'")
  for path in pipe:lines() do
    local name = path:gsub("^lua/", ""):gsub("/init%.lua$", ""):gsub("%.lua$", ""):gsub("/", ".")
    found[name] = path
  end
  pipe:close()
  assert.is_truthy(found["msys"], "no Lua files; the specs are run from the repository's root")
  return found
end

local function rockspec()
  local fields = {}
  setfenv(assert(loadfile "msys-dev-1.rockspec"), fields)()
  return fields
end

--- Pieces of Lua in a document, with their lines.
local function blocks(path)
  local found, lines, first = {}, nil, nil
  local number = 0
  for line in (read(path) .. "\n"):gmatch "(.-)\r?\n" do
    number = number + 1
    if lines and line:match "^%s*```%s*$" then
      found[#found + 1] = { line = first, text = table.concat(lines, "\n") .. "\n" }
      lines = nil
    elseif lines then
      lines[#lines + 1] = line
    elseif line:match "^%s*```lua%s*$" then
      lines, first = {}, number
    end
  end
  return found
end

after_each(helper.clean)

describe("the version", function()
  local crate = read("Cargo.toml"):match '%[package%].-\nversion%s*=%s*"(.-)"'

  it("of the crate is the rockspec's", function()
    assert.is_truthy(crate)
    assert.equal(crate, read("msys-dev-1.rockspec"):match 'crate_version%s*=%s*"(.-)"')
  end)

  it("of the crate is msys._VERSION", function()
    assert.equal(crate, msys._VERSION)
  end)

  it("of the crate stands in the rockspec's description", function()
    assert.is_truthy(rockspec().description.detailed:find(crate, 1, true))
  end)

  it("of the rock is that of its file's name", function()
    assert.equal("dev-1", rockspec().version)
  end)
end)

describe("every Lua file under lua/", function()
  it("is installed by the rockspec, and nothing else is", function()
    assert.same(modules(), rockspec().build.install.lua)
  end)

  it("is in the workers' face", function()
    local expected, face = modules(), {}
    for name, path in read("src/face.rs"):gmatch '"([%w_.]+)": "%.%./([%w_/.]+)"' do
      face[name] = path
    end
    assert.same(expected, face)
  end)

  it("loads in a VM of its own, whichever comes first", function()
    for name in pairs(modules()) do
      -- These three are of workers only.
      if name ~= "msys.worker" and name ~= "msys.boot" and name ~= "msys.loader" then
        local out, err, status = helper.script(("print(type(require %q))"):format(name))
        assert.same({ "table\n", "", 0 }, { out, err, status }, name)
      end
    end
  end)
end)

describe("require 'msys'", function()
  it("defines no global, replaces none, and adds nothing to the standard library", function()
    local out, err = helper.script [[
      local function snapshot()
        local fields = {}
        local function add(prefix, map)
          for key, value in pairs(map) do
            fields[prefix .. tostring(key)] = value
          end
        end
        add("", _G)
        for _, name in ipairs { "string", "table", "math", "io", "os", "coroutine", "debug", "package", "jit", "bit" } do
          add(name .. ".", _G[name])
        end
        add("string's metatable.", getmetatable "")
        return fields
      end
      local before = snapshot()
      local msys = require "msys"
      local function check(what)
        local after = snapshot()
        for key, value in pairs(after) do
          if before[key] == nil then print(what, "new", key) end
        end
        for key, value in pairs(before) do
          if not rawequal(after[key], value) then print(what, "changed", key) end
        end
      end
      check "require"
      msys.run(function() assert(msys.runInPool("CPU", function() return 1 end)) end)
      msys.runInPool("CPU", function() end, true)
      check "use"
      local debug_name, g_meta = next { getmetatable(_G) }
      print("checked", g_meta)
    ]]
    assert.equal("checked\tnil\n", out .. err)
  end)
end)

describe("what is shown runs:", function()
  local exists = io.open "README.md"

  it("README.md is there, and has a piece of Lua", function()
    assert.is_truthy(exists, "no README.md")
    assert.is_true(#blocks "README.md" > 0)
  end)

  for _, block in ipairs(exists and blocks "README.md" or {}) do
    it(("README.md:%d"):format(block.line), function()
      -- Line numbers in errors are those of the document.
      local _, err, status = helper.script(("\n"):rep(block.line) .. block.text)
      assert.same({ "", 0 }, { err, status })
    end)
  end

  it("examples/survey.lua is there", function()
    assert.is_function(loadfile "examples/survey.lua")
  end)
end)
