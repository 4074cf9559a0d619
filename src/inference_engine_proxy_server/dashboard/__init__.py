"""What the dashboard shows: live requests, events, rates and percentiles of the last hour; and the feed of it.

Without viewers, nothing is computed but one step of the history every ten seconds.
"""
