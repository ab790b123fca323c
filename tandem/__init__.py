"""What more than one service needs: one package for each arrow between services, and the runtime they share.

Belongs here: what two services import, or what is the contract on an arrow. Does not: anything one service keeps to
itself.
"""
