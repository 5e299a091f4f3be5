// Everything the provider remembers: one Map, shared by every Provider object of this process, so that
// a Provider can be built anew (other keys, other features) without losing a session or a token.
// The adapter that oidc-provider brings forgets the oldest of 1000 entries; this one forgets nothing,
// not even what has expired: its models look at `exp` themselves, and say "expired" in the log.

const entries = new Map(); // "Model:id" -> { model, id, payload }
const byUid = new Map();
const byUserCode = new Map();

const key = (model, id) => `${model}:${id}`;

export class Adapter {
  constructor(model) {
    this.model = model;
  }

  async upsert(id, payload) {
    entries.set(key(this.model, id), { model: this.model, id, payload });
    if (this.model === 'Session') byUid.set(payload.uid, id);
    if (payload.userCode) byUserCode.set(payload.userCode, id);
  }

  async find(id) {
    return entries.get(key(this.model, id))?.payload;
  }

  async findByUid(uid) {
    return this.find(byUid.get(uid));
  }

  async findByUserCode(userCode) {
    return this.find(byUserCode.get(userCode));
  }

  async consume(id) {
    const entry = entries.get(key(this.model, id));
    if (entry) entry.payload.consumed = Math.floor(Date.now() / 1000);
  }

  async destroy(id) {
    entries.delete(key(this.model, id));
  }

  async revokeByGrantId(grantId) {
    for (const [name, { model, payload }] of entries) {
      if (model === this.model && payload.grantId === grantId) entries.delete(name);
    }
  }
}

/** What there is of a model and has not expired. */
export function all(model, matches = () => true) {
  const now = Date.now() / 1000;
  return [...entries.values()].filter(
    (entry) => entry.model === model && !(entry.payload.exp <= now) && matches(entry.payload),
  );
}

export const has = (model, id) => entries.has(key(model, id));

export function revokeGrants(matches) {
  const revoked = new Set(all('Grant', matches).map(({ id }) => id));
  for (const [name, { model, id, payload }] of entries) {
    if (revoked.has(payload.grantId) || (model === 'Grant' && revoked.has(id))) entries.delete(name);
  }
  return [...revoked];
}

export function endSessions(matches) {
  const ended = all('Session', matches);
  for (const { id } of ended) entries.delete(key('Session', id));
  return ended.length;
}
