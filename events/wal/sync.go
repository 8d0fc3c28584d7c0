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

// changed are the segments with changes, which the caller MUST sync.
func (l *Log) changed() (all []*segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.live {
		if s.dirty.Swap(false) {
			all = append(all, s)
		}
	}
	return all
}

// save brings changes to the disk. What was logged before begun is there then,
// and the mark says so with the next sync: a mark that came with its own sync
// could be on the disk before what it speaks of.
func (l *Log) save(changed []*segment, begun time.Time) {
	resting := l.idle.Load()
	if resting {
		_ = l.note(mark{l.last().time + 1, busy}) // the syncs below tell
	}
	for _, s := range changed {
		if err := s.sync(); err != nil {
			l.mu.Lock()
			s.unsync, s.broken = true, true
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
}

// note writes a mark and syncs it. Nothing is waiting to be synced.
func (l *Log) note(m mark) error {
	l.mu.Lock()
	s := l.current
	err := l.unsync
	if err == nil {
		err = s.mark(&l.crypt, m)
	}
	if err == nil {
		l.marked = m
	}
	l.mu.Unlock()
	if err == nil {
		err = s.sync()
	}
	return err
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
	for _, s := range changed {
		s.dirty.Store(true)
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

// spares is how many segments that are not used wait for their next use.
const spares = 2

// tend keeps a segment ready and removes those that nobody needs.
func (l *Log) tend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	var keep []*segment
	for _, s := range l.retired {
		if len(keep) < spares && !s.broken {
			keep = append(keep, s)
		} else {
			l.remove(s)
		}
	}
	l.retired = keep
	if l.failed != nil && time.Since(l.tried) < retryEvery {
		return
	}
	l.tried = time.Now()
	if l.next == nil {
		l.next = l.again()
	}
	if l.next == nil {
		var err error
		if l.next, err = l.prepare(); err != nil {
			// What there is may do until the next try.
			if l.current.broken || l.failed != nil {
				l.failed = err
			}
			return
		}
	}
	if l.failed != nil || l.current.broken {
		if err := l.install(); err != nil {
			l.failed = err
		}
	}
}

// retryEvery is how often a log that failed tries to make a segment.
const retryEvery = 200 * time.Millisecond
