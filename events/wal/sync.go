package wal

import "time"

func nowNano() int64 { return time.Now().UnixNano() }

func (l *Log) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// touch is called after a change of a segment, by whoever made it.
func (l *Log) touch(s *segment) {
	if !s.dirty.Load() {
		s.dirty.Store(true)
		l.poke()
	}
	// In this order: whoever lets the log rest says so first and then looks for
	// changes, so that one of the two sees the other.
	if l.idle.Load() {
		l.await()
	}
}

// await returns when the disk no longer says that the log rests.
func (l *Log) await() {
	l.mu.Lock()
	awake := l.awake
	l.mu.Unlock()
	if awake == nil {
		return
	}
	l.poke()
	enough := time.NewTimer(wakeWithin)
	defer enough.Stop()
	select {
	case <-awake:
	case <-l.stop:
	case <-enough.C:
	}
}

// run syncs, notes how far, and keeps a segment ready. It ends with the log.
func (l *Log) run() {
	begun, active := time.Now(), time.Now()
	again := time.NewTimer(quietEvery)
	defer again.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-l.wake:
		case <-again.C:
		}
		if left := syncEvery - time.Since(begun); left > 0 {
			select {
			case <-l.stop:
				return
			case <-time.After(left):
			}
		}
		begun = time.Now()
		l.tend()
		switch changed := l.changed(); {
		case len(changed) > 0:
			active = begun
			l.save(changed, begun)
		case l.idle.Load():
		case begun.Sub(active) < idleAfter:
			_ = l.note(mark{begun.UnixNano(), quiet}) // the next one tells
		default:
			l.rest(begun)
		}
		if l.idle.Load() && l.Err() == nil {
			again.Stop()
		} else {
			again.Reset(quietEvery)
		}
	}
}

// part is a segment that is held for a sync, and how much of it is in use.
type part struct {
	s *segment
	n int
}

// changed are the segments with changes, which the caller MUST save.
func (l *Log) changed() (all []part) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.live {
		if s.dirty.Swap(false) {
			s.open.Add(1)
			all = append(all, part{s, s.off})
		}
	}
	return all
}

// save brings changes to the disk. What was logged before begun is there then,
// and the mark says so with the next sync: a mark that came with its own sync
// could be on the disk before what it speaks of.
func (l *Log) save(changed []part, begun time.Time) {
	resting := l.idle.Load()
	if resting {
		_ = l.note(mark{l.last().time + 1, busy}) // the syncs below tell
	}
	l.mu.Lock()
	fresh := l.fresh
	l.fresh = false
	l.mu.Unlock()
	var failed error
	if fresh {
		failed = syncDir(l.dir)
	}
	for _, p := range changed {
		err := p.s.sync(p.n)
		if err == nil {
			err = failed
		}
		if err != nil {
			l.mu.Lock()
			p.s.unsync, p.s.broken, l.fresh = true, true, true
			if l.unsync == nil {
				l.o.Log.Error("the write-ahead log cannot be synced: a power cut would lose more than 50 ms of uses", "log", l.dir, "error", err)
			}
			l.unsync = err
			l.mu.Unlock()
		}
	}
	l.mu.Lock()
	safe := true
	for _, s := range l.live {
		safe = safe && !s.unsync
	}
	if safe && l.unsync != nil {
		l.unsync = nil
		l.o.Log.Info("the write-ahead log is synced again", "log", l.dir)
	}
	if safe {
		l.marked = mark{begun.UnixNano(), busy}
		if err := l.current.mark(&l.crypt, l.marked); err != nil {
			l.current.broken = true
		}
	}
	if resting {
		l.idle.Store(false)
		close(l.awake)
		l.awake = nil
	}
	l.mu.Unlock()
	for _, p := range changed {
		l.release(p.s, 1)
	}
}

// note writes a mark and syncs it. Nothing is waiting to be synced.
func (l *Log) note(m mark) error {
	l.mu.Lock()
	s, err := l.current, l.unsync
	if err == nil {
		err = s.mark(&l.crypt, m)
	}
	if err != nil {
		l.mu.Unlock()
		return err
	}
	l.marked = m
	s.open.Add(1)
	l.mu.Unlock()
	defer l.release(s, 1)
	return s.sync(atFirst)
}

// rest says on the disk that there is nothing to lose, unless there is.
func (l *Log) rest(begun time.Time) {
	l.mu.Lock()
	if l.unsync != nil || l.failed != nil || l.loose > 0 {
		l.mu.Unlock()
		return
	}
	l.awake = make(chan struct{})
	l.mu.Unlock()
	l.idle.Store(true)
	changed := l.changed()
	for _, p := range changed {
		p.s.dirty.Store(true)
		l.release(p.s, 1)
	}
	if len(changed) > 0 || l.note(mark{begun.UnixNano(), idle}) != nil {
		l.mu.Lock()
		l.idle.Store(false)
		close(l.awake)
		l.awake = nil
		l.mu.Unlock()
		l.poke()
	}
}

func (l *Log) last() mark {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.marked
}

// tend keeps some segments ready, removes what is too much, and replaces what is
// broken.
func (l *Log) tend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n := len(l.free); n > manyFree; n-- {
		l.remove(l.free[n-1])
		l.free = l.free[:n-1]
	}
	if l.failed != nil && time.Since(l.tried) < retryEvery {
		return
	}
	l.tried = time.Now()
	before := l.failed
	l.failed = nil
	for _, place := range []**segment{&l.current, &l.tallies} {
		s := *place
		if old := s.off > atFirst && time.Since(s.born) > oldAfter && l.stored.Load() > s.after; l.failed == nil && (before != nil || s.broken || old) {
			l.failed = l.install(place)
		}
	}
	if before != nil && l.failed == nil {
		l.o.Log.Info("the write-ahead log works again", "log", l.dir)
	}
	for len(l.free) < fewFree && l.failed == nil {
		s, err := l.create()
		if err != nil {
			return // there is one to write to; it fails when there is none
		}
		l.free = append(l.free, s)
	}
}

// oldAfter is how long a segment is written to at most, so that the next start
// reads no more of the event store than that.
const oldAfter = 5 * time.Second

// retryEvery is how often a log that failed tries again.
const retryEvery = 200 * time.Millisecond
