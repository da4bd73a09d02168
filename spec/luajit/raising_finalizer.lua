--- A fault of LuaJITs before 2024, shown without msys: a finalizer that raises while compiled code allocates crashes
--- the process. `luajit spec/luajit/raising_finalizer.lua` says "no crash" where it is mended.

for _ = 1, 20000 do
  for _ = 1, 3 do
    getmetatable(newproxy(true)).__gc = function()
      error("boom", 0)
    end
  end
  pcall(function()
    local kept
    for i = 1, 2000 do
      kept = { i }
    end
    return kept
  end)
end
print "no crash"
