"""PayMe's application as the database sees it, through the versions of the phone number's encryption.

Instances are processes of their own with sessions of role payme_app. They check every read by its value and write down
every write before they send it and after it was acknowledged, so that afterwards three numbers can be told: failed
queries, wrong reads, lost writes. Nothing they write down holds a phone number.
"""
