-- Health of an AgentRun: Suspended while it waits for a human, which holds a sync whose hook it is; Healthy once it succeeded.
-- A generation above the observed one says nothing: of a finished run only the TTL is still read.
-- Argo CD gives a check Lua 5.1's base and table functions, and no string library.
local conditions = {}
for _, condition in ipairs((obj.status or {}).conditions or {}) do
  conditions[condition.type] = condition
end
local succeeded, stalled = conditions.Succeeded, conditions.Stalled

if succeeded == nil then
  return { status = "Progressing", message = "Waiting for the controller" }
end
local message = succeeded.reason .. ": " .. succeeded.message
if succeeded.status == "True" then
  return { status = "Healthy", message = message }
end
if succeeded.status == "False" then
  return { status = "Degraded", message = message }
end
-- The workflow's code fails: it will not get further by itself. kstatus says Failed as well.
if stalled ~= nil and stalled.status == "True" then
  return { status = "Degraded", message = stalled.reason .. ": " .. stalled.message }
end
if succeeded.reason ~= "AwaitingApproval" then
  return { status = "Progressing", message = message }
end
local lines = {}
for _, pending in ipairs(obj.status.pendingApprovals or {}) do
  local approval = "agentapproval " .. pending.name .. " -n " .. obj.metadata.namespace
  table.insert(lines, pending.question)
  table.insert(lines, "kubectl describe " .. approval)
  table.insert(lines, "kubectl patch " .. approval .. [[ --type merge -p '{"spec":{"decision":"Approve"}}']])
end
if #lines > 0 then
  message = table.concat(lines, "\n")
end
return { status = "Suspended", message = message }
