#!/bin/sh
# Draws what the services of compose.yaml prove themselves with, once: keys.sh FOLDER
# The folder is a volume that only those services see; they run as different users, so each may read.
set -eu
folder=$1
draw() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
put() { # put NAME: standard input into the folder, whole or not at all
  cat > "$folder/$1.new"
  chmod 0444 "$folder/$1.new"
  mv "$folder/$1.new" "$folder/$1"
}

[ -s "$folder/redis.password" ] || draw | put redis.password
[ -s "$folder/admin.token" ] || draw | put admin.token
[ -s "$folder/grafana.password" ] || draw | put grafana.password
printf 'redis://:%s@redis:6379/0\n' "$(cat "$folder/redis.password")" | put redis.url
