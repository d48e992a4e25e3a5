-- A holder that lives but has not renewed in time: its host hangs. End its session; its token is void from now on.
SELECT ops.end_expired_holder(%(name)s)
