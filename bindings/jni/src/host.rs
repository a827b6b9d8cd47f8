//! What a native method may ask the JVM for: bytes in, bytes out, one exception. All that is unsafe is in here.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::null_mut,
};

use bytes::Bytes;
use jni_sys::{JNIEnv, JNINativeInterface_, jbyteArray, jclass, jobject, jsize, jvalue};
use valkyrie_bridge::{Reason, Status, layout::Batch};

/// A native method's thread, for as long as the method runs.
#[derive(Clone, Copy)]
pub(crate) struct Host(*mut JNIEnv);

/// Runs the body of a native method of `class`. A refusal, and a panic, becomes what its `refused(byte[])` throws.
pub(crate) fn enter<T: Default>(
    env: *mut JNIEnv,
    class: jclass,
    body: impl FnOnce(Host) -> Result<T, Status>,
) -> T {
    let host = Host(env);
    let outcome = catch_unwind(AssertUnwindSafe(|| body(host)));
    let panicked = |_| Err(Status::from_reason(Reason::INTERNAL, "the native part panicked"));
    outcome.unwrap_or_else(panicked).unwrap_or_else(|status| {
        let mut batch = Batch::default();
        batch.error(0, &status);
        host.refuse(class, &host.new_bytes(&contiguous(batch)));
        T::default()
    })
}

/// An array that the JVM owns. Local to the native method: it is never kept.
pub(crate) struct NewBytes(jbyteArray);

impl NewBytes {
    pub(crate) fn into_raw(self) -> jbyteArray {
        self.0
    }
}

/// What native methods return that give an array: null by default.
pub(crate) struct OrNull(pub(crate) jbyteArray);

impl Default for OrNull {
    fn default() -> Self {
        Self(null_mut())
    }
}

impl From<NewBytes> for OrNull {
    fn from(new: NewBytes) -> Self {
        Self(new.into_raw())
    }
}

/// A batch in one piece.
pub(crate) fn contiguous(mut batch: Batch) -> Vec<u8> {
    let (mut head, pieces) = batch.parts(false);
    pieces.iter().for_each(|piece| head.extend_from_slice(piece));
    head
}

impl Host {
    fn functions(self) -> &'static JNINativeInterface_ {
        // SAFETY: the JVM gave this pointer to the method that runs, and its table of functions lives as long as it does.
        unsafe { &**self.0 }
    }

    /// The bytes of an array; empty for null. One copy, in which nothing is zeroed before.
    pub(crate) fn bytes(self, array: jbyteArray) -> Vec<u8> {
        if array.is_null() {
            return Vec::new();
        }
        // SAFETY: Kotlin's declaration of each native method says that this is a byte[]; it is a live local reference.
        let length = unsafe { (self.functions().v1_1.GetArrayLength)(self.0, array) };
        let mut bytes: Vec<u8> = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        // SAFETY: the region is the whole array, whose length never changes, and there is room for all of it.
        unsafe {
            (self.functions().v1_1.GetByteArrayRegion)(self.0, array, 0, length, bytes.as_mut_ptr().cast());
            bytes.set_len(usize::try_from(length).unwrap_or(0));
        }
        bytes
    }

    /// Text that Kotlin wrote as UTF-8.
    pub(crate) fn text(self, array: jbyteArray) -> Result<String, Status> {
        String::from_utf8(self.bytes(array)).map_err(|_| wrong("a text is not UTF-8"))
    }

    /// Text, where there is one.
    pub(crate) fn text_or_none(self, array: jbyteArray) -> Result<Option<String>, Status> {
        if array.is_null() { Ok(None) } else { self.text(array).map(Some) }
    }

    /// A message.
    pub(crate) fn message(self, array: jbyteArray) -> Bytes {
        self.bytes(array).into()
    }

    /// A new array with these bytes. Null, with an OutOfMemoryError under way, where the JVM has no room.
    pub(crate) fn new_bytes(self, bytes: &[u8]) -> NewBytes {
        let length = jsize::try_from(bytes.len()).unwrap_or(jsize::MAX);
        // SAFETY: no exception is under way, and the length is not negative.
        let array = unsafe { (self.functions().v1_1.NewByteArray)(self.0, length) };
        if !array.is_null() {
            // SAFETY: the array was made with that length, which is not more than what `bytes` has.
            unsafe {
                (self.functions().v1_1.SetByteArrayRegion)(self.0, array, 0, length, bytes.as_ptr().cast());
            }
        }
        NewBytes(array)
    }

    /// The memory of a direct ByteBuffer: where it begins, and how long it is. Nothing of another buffer.
    pub(crate) fn room(self, buffer: jobject) -> Room {
        // SAFETY: Kotlin's declaration says that this is a ByteBuffer; it is a live local reference.
        let (start, length) = unsafe {
            let functions = self.functions().v1_4;
            (
                (functions.GetDirectBufferAddress)(self.0, buffer),
                (functions.GetDirectBufferCapacity)(self.0, buffer),
            )
        };
        let length = if start.is_null() { 0 } else { usize::try_from(length).unwrap_or(0) };
        Room { start: start.cast(), length }
    }

    fn refuse(self, class: jclass, with: &NewBytes) {
        if with.0.is_null() {
            return;
        }
        let functions = self.functions();
        // SAFETY: `class` is the class whose native method runs, the names end with a zero, and no exception is under way. Without
        // such a method the JVM throws its own error.
        unsafe {
            let method =
                (functions.v1_1.GetStaticMethodID)(self.0, class, c"refused".as_ptr(), c"([B)V".as_ptr());
            if !method.is_null() {
                (functions.v1_1.CallStaticVoidMethodA)(
                    self.0,
                    class,
                    method,
                    [jvalue { l: with.0 }].as_ptr(),
                );
            }
        }
    }
}

/// Memory of the JVM's that a native method writes to.
pub(crate) struct Room {
    start: *mut u8,
    length: usize,
}

impl Room {
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Writes the parts one behind the other; they fit.
    pub(crate) fn write<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) {
        let mut at = 0;
        for part in parts {
            assert!(part.len() <= self.length - at, "what is written fits");
            // SAFETY: there is room for the part behind what was written, and the memory of a direct buffer that Kotlin
            // holds for the call overlaps nothing of ours.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), self.start.add(at), part.len()) };
            at += part.len();
        }
    }
}

/// For what only a Kotlin side of another version can send.
pub(crate) fn wrong(what: &str) -> Status {
    Status::from_reason(Reason::INVALID_ARGUMENT, what.to_owned())
}
