-- The atomic steps of a grant store in Redis or Valkey: one call, one step, one key.
--
-- What begin, commit, update, abort and bury do is written down in flask_atm/grants/control.py, and
-- a test runs both side by side. KEYS[1] is a record or an index, ARGV[1] the name of the step; all
-- instants and lengths of time are whole milliseconds. `now` is set before: the server's clock.
--
-- A record is one string: words in ASCII, and after the last space the sealed bytes as they are. A
-- text that is None is an empty word, any other one begins with "=" and is quoted.
--
-- An index is a sorted set whose members are "<key>\0<16 digits: its end>", all of one score: they
-- are in order of key, and each says itself when it may be trimmed.

local LONGEST_PAUSE = 300000
local DELETED_FOR = 10000
local TRIMMED = 10
local WORD = '(%S*)'
local NUMBER = '(%d+)'
local RECORD = '^1 ' .. table.concat({
  WORD, WORD, NUMBER, NUMBER, WORD, NUMBER, NUMBER, WORD, NUMBER,
  WORD, WORD, WORD, NUMBER, NUMBER, NUMBER, NUMBER, '(.*)',
}, ' ') .. '$'

local steps = {}

-- records

local function parse(value)
  local c = {}
  c.call, c.index, c.version, c.sealed_version, c.lease_owner, c.lease_until, c.lease, c.intent,
    c.doubt, c.suspect, c.dead, c.commit_id, c.retry_at, c.failures, c.ends_at, c.tombstone,
    c.sealed = string.match(value, RECORD)
  if not c.call then
    return nil
  end
  for _, name in ipairs({'version', 'sealed_version', 'lease_until', 'lease', 'retry_at',
                         'failures', 'ends_at'}) do
    c[name] = tonumber(c[name])
  end
  c.doubt, c.tombstone = c.doubt == '1', c.tombstone == '1'
  return c
end

local function whole(number)
  return string.format('%.0f', number)
end

local function flag(truth)
  return truth and '1' or '0'
end

local function get()
  local value = redis.call('GET', KEYS[1])
  local c = value and parse(value)
  if c and c.ends_at > now then
    return c
  end
  return nil
end

local function put(c)
  local value = table.concat({
    '1', c.call, c.index, whole(c.version), whole(c.sealed_version), c.lease_owner,
    whole(c.lease_until), whole(c.lease), c.intent, flag(c.doubt), c.suspect, c.dead, c.commit_id,
    whole(c.retry_at), whole(c.failures), whole(c.ends_at), flag(c.tombstone), c.sealed,
  }, ' ')
  redis.call('SET', KEYS[1], value, 'PX', whole(c.ends_at - now))
end

-- A server whose memory is full refuses what a script writes, until the script has written: a removal
-- is never refused. So what only begins is refused, and what ends something that was begun is not: a
-- refresh token that was spent is replaced, and a user can sign out.
local function put_in_any_case(c)
  redis.call('DEL', KEYS[1])
  put(c)
end

local function fresh(version, ends_at, sealed)
  return {
    call = '', index = '', version = version, sealed_version = version, lease_owner = '',
    lease_until = 0, lease = 0, intent = '', doubt = false, suspect = '', dead = '',
    commit_id = '', retry_at = 0, failures = 0, ends_at = ends_at, tombstone = false,
    sealed = sealed,
  }
end

local function lease_left(c)
  local left = c.lease_until - now
  if c.lease_owner ~= '' and left > 0 and 10 * left <= 11 * c.lease then
    return left
  end
  return 0
end

local function in_doubt(c)
  return c.doubt or (c.intent ~= '' and lease_left(c) == 0)
end

-- A call has a name of its own: when its answer is lost and it comes again, it is recognised.
function steps.create(call, index, ends_at, doubt, version, sealed)
  local c = get()
  if c then
    return flag(c.call == call)
  end
  c = fresh(tonumber(version), tonumber(ends_at), sealed)
  c.call, c.index, c.doubt = call, index, doubt == '1'
  if c.ends_at > now then
    put(c)
  end
  return '1'
end

local function held(c)
  return {'held', now, c.version, flag(c.doubt)}
end

function steps.begin(owner, expected_version, lease, intent)
  local c = get()
  if not c or c.tombstone then
    return {'gone', now}
  end
  local left = lease_left(c)
  if left > 0 and c.lease_owner == owner then
    return held(c)
  elseif left > 0 then
    return {'busy', now, left}
  elseif c.version ~= tonumber(expected_version) then
    return {'moved', now}
  end
  local left_behind = intent ~= '' and c.intent == intent and c.lease_owner ~= owner
  if c.lease_owner ~= '' then
    c.version = c.version + 1
  end
  c.lease = tonumber(lease)
  c.lease_owner, c.lease_until, c.intent = owner, now + c.lease, intent
  c.doubt = c.doubt or left_behind
  put(c)
  return held(c)
end

function steps.commit(expected_version, commit_id, sealed)
  local c = get()
  if not c or c.tombstone then
    return 'gone'
  elseif c.commit_id == commit_id then
    return 'ok'
  elseif c.version ~= tonumber(expected_version) then
    return 'moved'
  end
  local new = fresh(c.version + 1, c.ends_at, sealed)
  new.call, new.index, new.commit_id = c.call, c.index, commit_id
  put_in_any_case(new)
  return 'ok'
end

-- With a new index (after "=") its end and the index that it was in are given too.
function steps.update(call, expected_version, index, sealed)
  local c = get()
  if not c or c.tombstone then
    return {'gone'}
  elseif c.call == call then
    return {'ok'}
  elseif c.version ~= tonumber(expected_version) then
    return {'moved'}
  elseif lease_left(c) > 0 or in_doubt(c) then
    return {'busy'}
  end
  local answer = {'ok'}
  if index ~= '' then
    answer = {'ok', whole(c.ends_at), c.index}
    c.index = string.sub(index, 2)
  end
  c.version = c.version + 1
  c.sealed_version, c.call, c.sealed = c.version, call, sealed
  put(c)
  return answer
end

function steps.adopt(call, expected_version, version, sealed)
  local c = get()
  version, expected_version = tonumber(version), tonumber(expected_version)
  if not c or c.tombstone then
    return 'gone'
  elseif c.call == call then
    return 'ok'
  elseif c.version ~= expected_version or version <= expected_version then
    return 'moved'
  end
  local new = fresh(version, c.ends_at, sealed)
  new.call, new.index, new.doubt = call, c.index, true
  put(new)
  return 'ok'
end

function steps.abort(owner, clear_intent, pause, failures, suspect, dead)
  local c = get()
  if not c or c.tombstone or c.lease_owner ~= owner then
    return ''
  end
  local cleared = clear_intent == '1' and not c.doubt
  c.version = c.version + 1
  c.lease_owner, c.lease_until, c.lease = '', 0, 0
  c.doubt = c.doubt or (c.intent ~= '' and not cleared)
  if cleared then
    c.intent = ''
  end
  if tonumber(pause) > 0 then
    c.retry_at = now + math.min(tonumber(pause), LONGEST_PAUSE)
  end
  c.failures = tonumber(failures)
  -- A text counts where it is neither None nor empty, as it does in Python's "or".
  if #dead > 1 then
    c.dead = dead
  elseif #suspect > 1 and suspect == c.suspect then
    c.dead = suspect
  end
  if #suspect > 1 then
    c.suspect = suspect
  end
  put_in_any_case(c)
  return ''
end

local function bury(c, call, index, keep)
  local new = fresh(c.version + 1, c.ends_at, keep)
  new.sealed_version, new.call, new.index, new.tombstone = 1, call, index, true
  put_in_any_case(new)
end

-- Gives whether a record was removed, and if anything was: its end, and the index that it was in.
function steps.delete(call, expected_version, index, keep)
  local c = get()
  if not c then
    local value = redis.call('GET', KEYS[1]) or ''
    local deleted_by, old, ends_at = string.match(value, '^0 (%S*) (%S*) (%d+)$')
    if deleted_by == call then
      return {'1', ends_at, old}
    end
    return {'0'}
  elseif c.tombstone and c.call == call then
    return {'1'}
  elseif expected_version ~= '' and c.version ~= tonumber(expected_version) then
    return {'0'}
  end
  if keep ~= '' then
    bury(c, c.tombstone and c.call or call, index, string.sub(keep, 2))
  elseif c.tombstone then
    redis.call('DEL', KEYS[1])
  else
    local deleted = table.concat({'0', call, c.index, whole(c.ends_at)}, ' ')
    redis.call('DEL', KEYS[1])
    redis.call('SET', KEYS[1], deleted, 'PX', DELETED_FOR)
  end
  return {flag(not c.tombstone), whole(c.ends_at), c.index}
end

function steps.clock()
  return now
end

-- indexes

local function has_ended(member)
  return (tonumber(string.sub(member, -16)) or 0) <= now
end

local function trim(members)
  for _, member in ipairs(members) do
    if has_ended(member) then
      redis.call('ZREM', KEYS[1], member)
    end
  end
end

-- The members beside the new one are looked at. Keys are hashes, so these are as good as any: each
-- entry looks at twenty, and where one in twenty has ended, as many go as come.
function steps.enter(in_any_case, ...)
  for _, member in ipairs({...}) do
    local left = tonumber(string.sub(member, -16)) - now
    if left > 0 then
      if in_any_case == '1' then
        redis.call('ZREM', KEYS[1], member)
      end
      redis.call('ZADD', KEYS[1], 0, member)
      trim(redis.call('ZRANGEBYLEX', KEYS[1], '(' .. member, '+', 'LIMIT', 0, TRIMMED))
      trim(redis.call('ZREVRANGEBYLEX', KEYS[1], '(' .. member, '-', 'LIMIT', 0, TRIMMED))
      if redis.call('PTTL', KEYS[1]) < left then
        redis.call('PEXPIRE', KEYS[1], whole(left))
      end
    end
  end
  return ''
end

-- Gives the clock and a page of the members that have not ended, after how many were looked at and
-- the last of them: the next page begins there.
function steps.page(from, limit)
  local members = redis.call('ZRANGEBYLEX', KEYS[1], from, '+', 'LIMIT', 0, limit)
  local answer = {now, #members, members[#members] or ''}
  for _, member in ipairs(members) do
    if has_ended(member) then
      redis.pcall('ZREM', KEYS[1], member)
    else
      answer[#answer + 1] = member
    end
  end
  return answer
end

return steps[ARGV[1]](unpack(ARGV, 2))
