"""Active health for Nginx: keeps the upstream's members to the servers that say SERVING.

Open-source Nginx knows passive checks only, and those take servers out for being
slow. This sidecar asks every server's grpc.health.v1 and rewrites the file of
members, then reloads Nginx, which loses no call.
"""
