-- Health of an AgentSession: Healthy while it takes runs, and once it is closed. A closed or lost one stays what it is.
-- `status.observedGeneration` is what its workflow knows; one that waits for its Agent has none, and says so all the same.
-- Argo CD gives a check Lua 5.1's base and table functions, and no string library.
local passes_by_itself = { Pending = true, StartFailed = true }
local is_final = { Closed = true, SessionLost = true }

local status = obj.status or {}
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end
local ready, stalled = conditions.Ready or {}, conditions.Stalled

local generation = obj.metadata.generation or 1
local is_told = (status.observedGeneration or -1) >= generation
local is_looked_at = ready.status == "False" and (ready.observedGeneration or -1) >= generation
if ready.status == nil or not (is_told or is_looked_at or is_final[ready.reason]) then
  return { status = "Progressing", message = "Waiting for the controller" }
end
-- The workflow's code fails: it will not get further by itself. kstatus says Failed as well.
if stalled ~= nil and stalled.status == "True" then
  return { status = "Degraded", message = stalled.reason .. ": " .. stalled.message }
end
local health = "Progressing"
if ready.status == "True" then
  health = "Healthy"
elseif ready.status == "False" and not passes_by_itself[ready.reason] then
  health = "Degraded"
end
return { status = health, message = ready.reason .. ": " .. ready.message }
