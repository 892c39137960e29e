"""What configuration consists of: the models, where each value came from, and what can be wrong with it.

``proxy.config`` is the door; nothing else imports from here.
"""
