// What the admin surface may change while the server runs, and what it can look at.

import { EventEmitter } from 'node:events';

const RealDate = Date;
export const realNow = () => RealDate.now();

export const settings = {
  account: 'alice', // who is signed in when the request says nothing (login_hint or account do)
  accounts: {}, // claims by account id, over the ones made up from the id
  rotate: true, // refresh tokens are used once; a second use kills the grant
  refresh_tokens: 'always', // or 'offline_access', 'never'
  expires_with_session: false, // grants without offline_access end with the provider's session
  access_token_ttl: 300,
  client_token_ttl: 300,
  refresh_token_ttl: 14 * 86400,
  id_token_ttl: 300,
  code_ttl: 60,
  id_token_on_refresh: true,
  id_token_claims: {}, // more claims of every ID token
  acr: null, // null: the first of acr_values
  amr: ['pwd'],
  denied_scopes: [], // the user refuses these
  interaction_error: null, // {error, error_description}: the user cancels
  auto_submit: true, // pages that a browser would submit by script are submitted by the server
  resources: {
    'https://api.example/a': { scope: 'read write a', format: 'jwt' },
    'https://api.example/b': { scope: 'read write b', format: 'jwt' },
    'https://api.example/c': { scope: 'read write c', format: 'opaque' },
  },
  default_resource: null, // for token requests that name none
  use_granted_resource: false, // a refresh without resource gets the granted one's token
  require_par: false,
  dpop_nonce: 'off', // 'accepted', 'required', 'fresh' (a new one on each answer, good for dpop_nonce_ttl)
  dpop_nonce_ttl: 5,
  metadata: {}, // over the discovery document; null takes a member away
  oauth_metadata: {}, // over that of RFC 8414
  clock_offset: 0, // seconds added to this server's clock
  keep_alive_ms: 5000,
  api_reject: false, // the API answers 401 to every token
  api_audience: null, // a token for another audience is refused
  api_dpop_nonce: 'off', // 'required', 'fresh'
};

export function apply(changes = {}) {
  const unknown = Object.keys(changes).filter((name) => !(name in settings));
  if (unknown.length) throw new TypeError(`no such setting: ${unknown.join(', ')}`);
  Object.assign(settings, structuredClone(changes));
}

// Lifetimes, iat and exp, the adapter and JWT checks all read the clock through Date.
globalThis.Date = class extends RealDate {
  constructor(...parts) {
    if (parts.length) super(...parts);
    else super(RealDate.now() + settings.clock_offset * 1000);
  }

  static now() {
    return RealDate.now() + settings.clock_offset * 1000;
  }
};

const changes = new EventEmitter().setMaxListeners(0);
export const changed = () => changes.emit('change');

/** Answers as soon as `condition()` holds: true, or false after `timeout` ms. */
export function until(condition, timeout) {
  return new Promise((resolve) => {
    if (condition()) return resolve(true);
    const done = (result) => {
      clearTimeout(timer);
      changes.off('change', look);
      resolve(result);
    };
    const look = () => condition() && done(true);
    const timer = setTimeout(() => done(false), timeout);
    changes.on('change', look);
  });
}

export const log = []; // why something was refused, and what else happened

export function note(event, details = {}) {
  log.push({ at_ms: realNow(), event, ...details });
  changed();
}
