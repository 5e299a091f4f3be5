"""Sign-in: the authorization code flow with PKCE, from the first redirect to the grant.

The path of a sign-in, in order, with the module of each step:

1. ``flow.begin``: ``authorization`` puts the request together, ``pending`` puts what has to be
   known later into a sealed cookie, and the browser goes to the provider.
2. ``flow.finish``: the browser is back. ``authorization`` reads the answer, ``accept`` finds the
   pending sign-in that it belongs to and looks at who answered. Nothing was sent so far.
3. ``used_states.claim``: of all requests that bring this answer one alone goes on. The others wait
   for it and go to step 6.
4. ``accept.accept``: ``exchange_code`` sends the code and checks all that comes for it; the
   application's ``on_login`` is asked; the grant goes to the store.
5. ``used_states.settle``: what came of it is written down, under the hash of the ``state``.
6. ``sign_in.follow``: the grant goes into the browser's session, whoever was there before leaves,
   and the browser goes to the page that it came from.

Beside the path, ``recent`` remembers what this browser did in the last minutes: too many pending
sign-ins, and sign-ins that lead nowhere.
"""

from flask_atm.login.flow import begin, begin_again, finish, registry

__all__ = ["begin", "begin_again", "finish", "registry"]
