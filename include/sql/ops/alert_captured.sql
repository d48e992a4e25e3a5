UPDATE ops.alerts SET sentry_event_id = %(event_id)s WHERE key = %(key)s AND occurrence = %(occurrence)s
