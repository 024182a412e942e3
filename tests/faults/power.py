"""What a disk holds after a power cut: every state that the rules of POSIX allow for what was not fsynced.

While a run goes on, the tree is photographed before each fsync, rename and exchange. A cut at photograph k keeps

    of a file     what it held at its last fsync, or, by chance, anything newer: cut off, zero-filled, or nothing
    of a folder   the entries of its last fsync, or, by chance, those of any later photograph

Files and folders are told apart by inode, so that a rename that was not fsynced can be undone.
"""

import os
import shutil

from luthier.core import atomic


class Recorder:
    """Photographs of a small tree, and the number of the photograph at which each inode was last fsynced."""

    def __init__(self, root):
        self.root, self.photographs, self.synced = root, [], {}
        self._ages, self._seen = {}, set()

    def _key(self, status):
        """An inode number may be given again after a deletion: then it is another file."""
        if status.st_ino not in self._seen:
            self._ages[status.st_ino] = self._ages.get(status.st_ino, 0) + 1
        return (status.st_ino, self._ages[status.st_ino])

    def photograph(self):
        """All of the tree now: {"folders": {key: {name: key}}, "files": {key: bytes}, "root": key}."""
        folders, files, present = {}, {}, set()

        def enter(folder):
            status = os.stat(folder)
            key = self._key(status)
            present.add(status.st_ino)
            folders[key] = {}
            for name in sorted(os.listdir(folder)):
                path = os.path.join(folder, name)
                try:
                    inner = os.stat(path)
                    if os.path.isdir(path):
                        folders[key][name] = enter(path)
                        continue
                    with open(path, "rb") as handle:
                        data = handle.read()
                except FileNotFoundError:  # the writer beside us just took it away
                    continue
                folders[key][name] = self._key(inner)
                present.add(inner.st_ino)
                files[folders[key][name]] = data
            return key

        root = enter(self.root)
        self._seen = present
        self.photographs.append({"folders": folders, "files": files, "root": root})

    def install(self):
        """Photograph before each call that orders writing; remember what was fsynced."""
        fsync, replace, exchange = os.fsync, os.replace, atomic.exchange

        def synced(handle):
            self.photograph()
            fsync(handle)
            status = os.fstat(handle)
            key = (status.st_ino, self._ages.get(status.st_ino, 1))
            self.synced.setdefault(key, []).append(len(self.photographs) - 1)

        def photographed(original):
            def call(first, second):
                self.photograph()
                return original(first, second)

            return call

        os.fsync, os.replace, atomic.exchange = synced, photographed(replace), photographed(exchange)

    def cut(self, at, source, target):
        """Rebuild in `target` what may be left after a cut just after photograph `at`."""
        shots = self.photographs

        def last_sync(key):
            return max((number for number in self.synced.get(key, []) if number < at), default=None)

        def content(key):
            sync = last_sync(key)
            versions = [shots[n]["files"][key] for n in range(sync or 0, at + 1) if key in shots[n]["files"]]
            kept = shots[sync]["files"].get(key, b"") if sync is not None else b""
            if not versions or versions[-1] == kept or source.random() < 0.3:
                return kept
            newer = source.choice(versions)
            length = source.randint(min(len(kept), len(newer)), max(len(kept), len(newer)))
            return newer[:length] if source.random() < 0.7 else newer[: len(kept)].ljust(length, b"\0")

        def entries(key):
            sync = last_sync(key)
            first = sync if sync is not None else 0
            known = [shots[n]["folders"][key] for n in range(first, at + 1) if key in shots[n]["folders"]]
            if not known:
                return {}
            if sync is None:
                return source.choice([{}, *known])
            return known[0] if source.random() < 0.5 else source.choice(known)

        def build(key, path):
            path.mkdir(parents=True, exist_ok=True)
            for name, inner in entries(key).items():
                if any(inner in shot["folders"] for shot in shots[: at + 1]):
                    build(inner, path / name)
                else:
                    (path / name).write_bytes(content(inner))

        shutil.rmtree(target, ignore_errors=True)
        build(shots[at]["root"], target)
