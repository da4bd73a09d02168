-- luacheck: globals love

--- Nothing of a game.
function love.conf(t)
  for name in pairs(t.modules) do
    t.modules[name] = name == "thread" or name == "timer"
  end
  t.window = nil
end
