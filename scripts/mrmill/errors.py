"""The one kind of error that is a message for a person rather than a defect."""


class UserError(Exception):
    """Something a user can put right: what, where, what was found, what to do next."""
